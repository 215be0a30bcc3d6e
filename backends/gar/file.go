package gar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"cloud.google.com/go/auth/credentials"

	"github.com/credential-broker/credential-broker/backends"
)

// maxFile bounds a file of credentials, in bytes.
const maxFile = 1 << 20

// file is a file of Google credentials (https://google.aip.dev/auth/4110 and those that it refers to).
type file struct {
	*google
	path, kind string
	content    []byte
	domain     string // the universe that the file says
}

// openFile reads a file. From is what names it, in messages: a setting or a variable.
func (g *google) openFile(ctx context.Context, path, from string) (source, error) {
	field := from
	if from != "credentialsFile" {
		field = ""
	}
	misconfigured := func(format string, args ...any) error {
		return backends.InvalidConfig(field, "credentials of %s (%s): %w", path, from, fmt.Errorf(format, args...))
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		return nil, misconfigured("it has %d bytes, which no file of credentials has", info.Size())
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathErr.Err
		}
		return nil, misconfigured("%w", err)
	}
	var head struct {
		Type             string `json:"type"`
		UniverseDomain   string `json:"universe_domain"`
		CredentialSource struct {
			Executable json.RawMessage `json:"executable"`
		} `json:"credential_source"`
	}
	if err := json.Unmarshal(content, &head); err != nil {
		return nil, misconfigured("it is not JSON, or not of the form that Google documents") // the parser's own error could quote a secret
	}
	f := &file{google: g, path: path, kind: head.Type, content: content, domain: head.UniverseDomain}
	switch credentials.CredType(head.Type) {
	case credentials.ServiceAccount, credentials.AuthorizedUser, credentials.ImpersonatedServiceAccount, credentials.ExternalAccountAuthorizedUser:
		if info.Mode().Perm()&0o004 != 0 && !isWindows {
			slog.WarnContext(ctx, "the file of Google credentials can be read by every user of this machine: chmod 0600", "file", path)
		}
	case credentials.ExternalAccount:
		if len(head.CredentialSource.Executable) > 0 {
			return nil, misconfigured("it wants a program to be run: name it in webIdentity.executable, where its file is checked, and its provider in workloadIdentityProvider")
		}
	case credentials.GDCHServiceAccount:
		return nil, misconfigured("credentials of type %s are for Google Distributed Cloud, whose registry is not Artifact Registry", credentials.GDCHServiceAccount)
	default:
		return nil, misconfigured("want a file of type service_account, authorized_user, impersonated_service_account or external_account, got %q", cut(head.Type))
	}
	return f, nil
}

func (f *file) token(ctx context.Context, scope string) (token, error) {
	doing := fmt.Sprintf("token for the %s in %s", f.kind, f.path)
	calls := f.calls()
	made, err := credentials.NewCredentialsFromJSON(credentials.CredType(f.kind), f.content, &credentials.DetectOptions{
		Scopes: []string{scope}, Client: calls.client(), UniverseDomain: f.cfg.UniverseDomain, DisableAsyncRefresh: true, Logger: silent,
	})
	if err != nil {
		return token{}, backends.InvalidConfig("", "%s: the file lacks something that credentials of its type have, or its key is none: make it anew", doing) // the library's own error could quote a secret
	}
	t, err := made.Token(ctx)
	if err != nil {
		return token{}, calls.explain(ctx, err, doing, func(last exchange) string { return oauthAdvice(last) })
	}
	return token{backends.Secret(t.Value), t.Expiry}, nil
}

func (f *file) universe(context.Context) (string, error) {
	switch {
	case f.cfg.UniverseDomain != "":
		return f.cfg.UniverseDomain, nil
	case f.domain != "" && !validDomain(f.domain):
		return "", backends.InvalidConfig("", "credentials of %s: universe_domain is %q, which is no domain", f.path, cut(f.domain))
	case f.domain != "":
		return f.domain, nil
	}
	return defaultUniverse, nil
}

package gar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// file is a file of Google credentials (https://google.aip.dev/auth/4110 and those that it refers to).
type file struct {
	*google
	path, kind string
	content    []byte
	domain     string             // the universe that the file says
	external   externalAccount    // what an external_account file says
	shown      *clientCertificate // nil: none
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
	content, mode, err := files.Read(path)
	if err != nil {
		return nil, misconfigured("%w", err)
	}
	var head struct {
		Type           string `json:"type"`
		UniverseDomain string `json:"universe_domain"`
	}
	if err := json.Unmarshal(content, &head); err != nil {
		return nil, misconfigured("it is not JSON, or not of the form that Google documents") // the parser's own error could quote a secret
	}
	if what := hidden(content); what != "" {
		return nil, misconfigured("its source_credentials want %s, which Google's library would use unchecked: name that file in credentialsFile, and the service account in impersonate", what)
	}
	if kind := credentials.CredType(head.Type); kind == credentials.ExternalAccount || kind == credentials.ImpersonatedServiceAccount {
		if err := trust.File(path); err != nil {
			return nil, misconfigured("it says what is read or run here, and where that is sent: %w", err)
		}
	}
	f := &file{google: g, path: path, kind: head.Type, content: content, domain: head.UniverseDomain}
	switch credentials.CredType(head.Type) {
	case credentials.ServiceAccount, credentials.AuthorizedUser, credentials.ImpersonatedServiceAccount, credentials.ExternalAccountAuthorizedUser:
		files.WarnIfReadable(ctx, path, mode)
	case credentials.ExternalAccount: // says where the secret is, and maybe what program gets it
		if err := json.Unmarshal(content, &f.external); err != nil {
			return nil, misconfigured("it is not JSON, or not of the form that Google documents")
		}
	case credentials.GDCHServiceAccount:
		return nil, misconfigured("credentials of type %s are for Google Distributed Cloud, whose registry is not Artifact Registry", credentials.GDCHServiceAccount)
	default:
		return nil, misconfigured("want a file of type service_account, authorized_user, impersonated_service_account or external_account") // what it has in their place may be a secret
	}
	return f, nil
}

// hidden is what credentials within credentials want; "" if it is nothing that has to be looked at.
func hidden(content []byte) string {
	for {
		var outer struct {
			SourceCredentials json.RawMessage `json:"source_credentials"`
		}
		var inner struct {
			CredentialSource struct {
				Executable, Certificate json.RawMessage
			} `json:"credential_source"`
		}
		if json.Unmarshal(content, &outer) != nil || len(outer.SourceCredentials) == 0 {
			return "" // what is no JSON names nothing
		}
		content = outer.SourceCredentials
		_ = json.Unmarshal(content, &inner)
		switch {
		case len(inner.CredentialSource.Executable) > 0:
			return "a program to be run"
		case len(inner.CredentialSource.Certificate) > 0:
			return "a client certificate"
		}
	}
}

func (f *file) token(ctx context.Context, scope string) (token, error) {
	doing := fmt.Sprintf("token for the %s in %s", f.kind, f.path)
	calls := f.calls()
	made, err := f.credentials(ctx, scope, calls)
	if err != nil {
		return token{}, err
	}
	defer calls.close()
	t, err := made.Token(ctx)
	if own, ok := errors.AsType[*subjectError](err); ok { // the token itself was not to be had
		return token{}, own.err
	}
	if err != nil && calls.end().host == "" && ctx.Err() == nil { // nobody was asked
		return token{}, f.incomplete()
	}
	if err != nil {
		return token{}, calls.explain(ctx, err, doing, f.advice)
	}
	return granted(t, doing, f.now())
}

// credentials are what Google's library makes of the file.
func (f *file) credentials(ctx context.Context, scope string, calls *calls) (made *auth.Credentials, err error) {
	if credentials.CredType(f.kind) == credentials.ExternalAccount {
		options, err := f.options(ctx, scope, calls)
		if err != nil {
			return nil, err
		}
		if options != nil {
			if made, err = externalaccount.NewCredentials(options); err != nil {
				return nil, f.incomplete()
			}
			return made, nil
		}
	}
	made, err = credentials.NewCredentialsFromJSON(credentials.CredType(f.kind), f.content, &credentials.DetectOptions{
		Scopes: []string{scope}, Client: calls.client(), UniverseDomain: f.cfg.UniverseDomain, DisableAsyncRefresh: true, Logger: silent,
	})
	if err != nil {
		return nil, f.incomplete()
	}
	return made, nil
}

// incomplete takes the place of the library's own error, which could quote a secret.
func (f *file) incomplete() error {
	return backends.InvalidConfig("", "credentials of %s: the file lacks something that type %s has to have, or its key is none: make it anew", f.path, f.kind)
}

func (f *file) advice(last exchange) string {
	if credentials.CredType(f.kind) == credentials.ExternalAccount {
		proof := "issuer, audience"
		if f.shown != nil {
			proof = "trust anchors"
			if doubt := f.shown.doubt(f.now()); doubt != "" && last.code == "invalid_grant" {
				return doubt
			}
		}
		if advice := exchangeAdvice(last.code, f.external.Audience, proof); advice != "" {
			return advice
		}
	}
	if advice := apiAdvice(last.code); advice != "" {
		return advice
	}
	if last.status == http.StatusForbidden {
		return "who asks has to have roles/iam.serviceAccountTokenCreator (another cloud's or issuer's identity: roles/iam.workloadIdentityUser) on the service account that the file impersonates"
	}
	return oauthAdvice(last)
}

func (f *file) universe(context.Context) (string, error) {
	switch {
	case f.domain != "" && !hosts.ValidDomain(f.domain):
		return "", backends.InvalidConfig("", "credentials of %s: universe_domain is %q, which is no domain", f.path, remote.Cut(f.domain))
	case f.domain != "":
		return f.domain, nil
	}
	return defaultUniverse, nil
}

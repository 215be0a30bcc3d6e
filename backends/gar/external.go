package gar

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
)

// externalAccount is what is read here of an external_account file (https://google.aip.dev/auth/4117). Google's library reads the rest.
type externalAccount struct {
	Audience                 string `json:"audience"`
	SubjectTokenType         string `json:"subject_token_type"`
	TokenURL                 string `json:"token_url"`
	ImpersonationURL         string `json:"service_account_impersonation_url"`
	ClientID                 string `json:"client_id"`
	ClientSecret             string `json:"client_secret"`
	WorkforcePoolUserProject string `json:"workforce_pool_user_project"`
	UniverseDomain           string `json:"universe_domain"`
	Impersonation            struct {
		TokenLifetimeSeconds int `json:"token_lifetime_seconds"`
	} `json:"service_account_impersonation"`
	CredentialSource struct {
		File   string `json:"file"`
		Format struct {
			Type      string `json:"type"`
			FieldName string `json:"subject_token_field_name"`
		} `json:"format"`
		Executable *struct {
			Command       string `json:"command"`
			TimeoutMillis int    `json:"timeout_millis"`
		} `json:"executable"`
		Certificate *certificateSource `json:"certificate"`
	} `json:"credential_source"`
}

// options are what Google's library needs for an external account whose token comes from here: from a file, a program that is run, or a certificate that is shown. nil: the library reads the file itself.
func (f *file) options(ctx context.Context, scope string, calls *calls) (*externalaccount.Options, error) {
	e := &f.external
	domain := cmp.Or(e.UniverseDomain, f.google.universe())
	o := &externalaccount.Options{
		Audience: e.Audience, SubjectTokenType: e.SubjectTokenType, TokenURL: e.TokenURL, ServiceAccountImpersonationURL: e.ImpersonationURL,
		ServiceAccountImpersonationLifetimeSeconds: e.Impersonation.TokenLifetimeSeconds, ClientID: e.ClientID, ClientSecret: e.ClientSecret,
		WorkforcePoolUserProject: e.WorkforcePoolUserProject, Scopes: []string{scope}, UniverseDomain: domain, Client: calls.client(), Logger: silent,
	}
	switch source := e.CredentialSource; {
	case source.Executable != nil:
		timeout := programTimeout
		if ms := source.Executable.TimeoutMillis; ms != 0 {
			timeout = time.Duration(ms) * time.Millisecond
		}
		if timeout < leastProgramTime || timeout > longestProgramTime {
			return nil, backends.InvalidConfig("", "credentials of %s: executable.timeout_millis: want 5000 to 120000, got %d", f.path, timeout.Milliseconds())
		}
		o.SubjectTokenProvider = &program{source.Executable.Command, timeout, e.ImpersonationURL}
	case source.Certificate != nil:
		var err error
		if f.shown, err = f.readCertificate(ctx, source.Certificate); err != nil {
			return nil, err
		}
		calls.mutual = f.shown.transport(f.transport)
		o.SubjectTokenProvider, o.TokenURL = f.shown, cmp.Or(e.TokenURL, "https://sts.mtls."+domain+"/v1/token")
	case source.File != "":
		o.SubjectTokenProvider = &tokenFile{source.File, source.Format.Type, source.Format.FieldName}
	default:
		return nil, nil //nolint:nilnil // for the library to read
	}
	return o, nil
}

// tokenFile is a file that has the token of another issuer. Google's library would wait for a pipe for ever.
type tokenFile struct{ path, format, field string }

// SubjectToken implements externalaccount.SubjectTokenProvider. A file that is missing or has no token is somebody else's to mend, and may be at any moment.
func (f *tokenFile) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	problem := func(err error) error {
		return &subjectError{backends.Unavailable(fmt.Errorf("identity token in credential_source.file %s: %w", f.path, err))}
	}
	content, _, err := files.Read(f.path)
	if err != nil {
		return "", problem(err)
	}
	token := strings.TrimSpace(string(content))
	if f.format == "json" {
		var fields map[string]any
		_ = json.Unmarshal(content, &fields) // its error could quote the token
		token, _ = fields[f.field].(string)
	}
	if token == "" {
		return "", problem(errors.New("there is none, in the format that credential_source says"))
	}
	return token, nil
}

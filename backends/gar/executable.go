package gar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// program is a program that prints a token. Google's library would run it as it is named in the file, if GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES is 1; here its file and the one that names it
// pass the same checks as a backend's, which takes that variable's place, and it ends with this process. It is run for each token: output_file is not looked at.
type program struct {
	command          string
	timeout          time.Duration
	impersonationURL string
}

// The bounds of AIP-4117 for a program's time.
const (
	programTimeout     = 30 * time.Second
	leastProgramTime   = 5 * time.Second
	longestProgramTime = 2 * time.Minute
)

// SubjectToken implements externalaccount.SubjectTokenProvider. Errors have nothing of what the program printed.
func (p *program) SubjectToken(ctx context.Context, o *externalaccount.RequestOptions) (string, error) {
	words := strings.Fields(p.command)
	if len(words) == 0 || !filepath.IsAbs(words[0]) {
		return "", &subjectError{backends.InvalidConfig("", "executable.command: want a command that begins with the absolute path of a program")}
	}
	path := words[0]
	problem := func(kind func(error) error, format string, args ...any) error {
		return &subjectError{kind(fmt.Errorf("identity token from program %s: %w", path, fmt.Errorf(format, args...)))}
	}
	if err := trust.Executable(path, nil); err != nil {
		return "", &subjectError{backends.InvalidConfig("", "identity token from program %s: %w", path, err)}
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	env := append(os.Environ(), "GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE="+o.Audience, "GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE="+o.SubjectTokenType, "GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE=0")
	if email := accountIn(p.impersonationURL); email != "" {
		env = append(env, "GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL="+email)
	}
	result, err := child.Run(ctx, child.Command{Path: path, Args: words[1:], Env: env, MaxStdout: 64 << 10})
	if errors.Is(err, context.DeadlineExceeded) {
		return "", problem(backends.Unavailable, "it did not end in time and was killed")
	}
	var out struct {
		Version        int    `json:"version"`
		Success        *bool  `json:"success"`
		TokenType      string `json:"token_type"`
		IDToken        string `json:"id_token"`
		SAMLResponse   string `json:"saml_response"`
		ExpirationTime int64  `json:"expiration_time"`
		Code           string `json:"code"`
	}
	if err != nil {
		return "", problem(backends.Unavailable, "%w", err)
	}
	value := func() string {
		if strings.HasSuffix(out.TokenType, ":saml2") {
			return out.SAMLResponse
		}
		return out.IDToken
	}
	switch err := json.Unmarshal(result.Stdout, &out); {
	case err != nil || out.Success == nil || out.Version != 1:
		return "", problem(backends.Unavailable, "it printed no JSON of version 1 as AIP-4117 has it")
	case !*out.Success:
		return "", problem(backends.Unavailable, "it says that it could not get one (code %q)", remote.Cut(out.Code))
	case out.TokenType != o.SubjectTokenType:
		return "", problem(backends.Refused, "it printed a token of type %q, want %q", remote.Cut(out.TokenType), o.SubjectTokenType)
	case value() == "":
		return "", problem(backends.Unavailable, "it printed no token")
	case out.ExpirationTime != 0 && !time.Unix(out.ExpirationTime, 0).After(time.Now()):
		return "", problem(backends.Unavailable, "it printed a token that has expired at %s", time.Unix(out.ExpirationTime, 0).UTC().Format(time.RFC3339))
	}
	return value(), nil
}

package amazon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// tried is what the SDK's default chain looks at, for the message when it finds nothing.
type tried struct {
	env    config.EnvConfig
	shared config.SharedConfig
	// process is the profile whose credential_process would be run; nil if none would.
	process *config.SharedConfig
}

func whatIsTried(cfg aws.Config, profile string) tried {
	var t tried
	for _, source := range cfg.ConfigSources {
		switch source := source.(type) {
		case config.EnvConfig:
			t.env = source
		case config.SharedConfig:
			t.shared = source
		}
	}
	// As the SDK chooses (config/resolve_credentials.go): an explicit profile wins over the environment.
	if profile == "" && (t.env.Credentials.HasKeys() || t.env.WebIdentityTokenFilePath != "") {
		return t
	}
	innermost := &t.shared
	for innermost.Source != nil {
		innermost = innermost.Source
	}
	if innermost.CredentialProcess != "" && !innermost.Credentials.HasKeys() && innermost.CredentialSource == "" && innermost.WebIdentityTokenFile == "" &&
		innermost.SSOStartURL == "" && innermost.SSOSession == nil && innermost.LoginSession == "" {
		t.process = innermost
	}
	return t
}

// Identity gives the credentials that the SDK's default chain finds. The error says what was tried, and what came of it.
func (s *Session) Identity(ctx context.Context) (aws.CredentialsProvider, error) {
	if _, err := s.base.Retrieve(ctx); err != nil {
		return nil, s.noCredentials(err)
	}
	return s.base, nil
}

// noCredentials says what was tried for an identity, and what came of it.
func (s *Session) noCredentials(err error) error {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	env, shared := s.tried.env, s.tried.shared
	attempts, err := s.call.failure(err)
	why := spoken(err).Error()
	if attempts > 1 {
		why += fmt.Sprintf(", after %d attempts", attempts)
	}
	none := false // there is nothing that could give credentials
	switch {
	case env.Credentials.HasKeys() && s.all.options.Profile == "":
		add("the environment's AWS_ACCESS_KEY_ID (%s)", why)
	case env.WebIdentityTokenFilePath != "" && s.all.options.Profile == "":
		add("AWS_WEB_IDENTITY_TOKEN_FILE %s as AWS_ROLE_ARN %q (%s)", env.WebIdentityTokenFilePath, env.RoleARN, why)
	case s.tried.process != nil:
		add("credential_process of profile %q (%s)", s.tried.process.Profile, why)
	case shared.SSOSession != nil || shared.SSOStartURL != "":
		add("profile %q, SSO (%s): log in again with aws sso login", shared.Profile, why)
	case shared.Credentials.HasKeys() || shared.Source != nil || shared.RoleARN != "" || shared.CredentialSource != "" || shared.LoginSession != "":
		add("profile %q of the shared configuration (%s)", shared.Profile, why)
	default:
		add("environment (no AWS_ACCESS_KEY_ID, no AWS_WEB_IDENTITY_TOKEN_FILE)")
		add("shared configuration (%s)", sharedFiles(env, "has no credentials for the profile"))
		if env.ContainerCredentialsRelativePath != "" || env.ContainerCredentialsEndpoint != "" {
			add("container credentials endpoint (%s)", s.metadata.outcome(err))
			break
		}
		none = true
		add("container credentials endpoint (no AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI)")
		add("instance metadata (%s)", s.metadata.outcome(err))
	}
	text := fmt.Sprintf("no AWS credentials: tried %s: %s", strings.Join(list, "; "), s.all.options.Remedy)
	found := CauseOf(err)
	if _, ok := errors.AsType[*trust.Error](err); ok {
		return backends.InvalidConfig("", "%s", text)
	}
	if none || found == CauseInvalid && strings.Contains(env.RoleARN, ":iam:") && !strings.HasPrefix(env.RoleARN, "arn:aws:") {
		return found.Kind()(&NoIdentityError{text})
	}
	return found.Kind()(&CallError{found, text})
}

// sharedFiles says which of the shared configuration files there are, and of those what they lack.
func sharedFiles(env config.EnvConfig, lack string) string {
	credentials, configuration := env.SharedCredentialsFile, env.SharedConfigFile
	if credentials == "" {
		credentials = config.DefaultSharedCredentialsFilename()
	}
	if configuration == "" {
		configuration = config.DefaultSharedConfigFilename()
	}
	var s string
	for _, file := range []string{credentials, configuration} {
		if s != "" {
			s += ", "
		}
		if _, err := os.Stat(file); err != nil {
			s += "no " + file
		} else {
			s += file + " " + lack
		}
	}
	return s
}

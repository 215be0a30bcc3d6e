package amazon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// processTimeout bounds a credential_process, as the SDK does.
const processTimeout = time.Minute

// processCredentials takes the place of what the SDK makes of a credential_process: the program has to pass the same checks as a backend's file, is started without a shell, and ends with
// this process. The roles of the profiles that build on it are assumed as the SDK does.
func (s *Session) processCredentials(innermost *config.SharedConfig, options func(*sts.Options)) aws.CredentialsProvider {
	var provider aws.CredentialsProvider = aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return runProcess(s.call.ctx, innermost.CredentialProcess) //nolint:contextcheck // the cache takes the deadline from its own
	}))
	var roles []*config.SharedConfig // outermost first
	for profile := &s.tried.shared; profile != nil; profile = profile.Source {
		if profile.RoleARN != "" {
			roles = append(roles, profile)
		}
	}
	for _, role := range slices.Backward(roles) {
		with := provider
		provider = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(
			sts.NewFromConfig(s.Config, options, func(o *sts.Options) { o.Credentials = with }), role.RoleARN,
			func(o *stscreds.AssumeRoleOptions) {
				o.RoleSessionName = role.RoleSessionName
				if role.ExternalID != "" {
					o.ExternalID = &role.ExternalID
				}
				if role.RoleDurationSeconds != nil {
					o.Duration = *role.RoleDurationSeconds
				}
			}))
	}
	return provider
}

// processOutput is what a credential_process prints (AWS SDKs and Tools Reference Guide, "Process credential provider").
type processOutput struct {
	Version         int
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      *time.Time
}

// runProcess runs the program and reads what it prints. The error never has any of it.
func runProcess(ctx context.Context, command string) (aws.Credentials, error) {
	words, err := splitCommand(command)
	if err != nil || len(words) == 0 {
		return aws.Credentials{}, errors.New("credential_process is no command line: quote its words as a shell wants them")
	}
	path, err := exec.LookPath(words[0])
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("credential_process: %w: name the program by its absolute path", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return aws.Credentials{}, fmt.Errorf("credential_process: %w", err)
	}
	if err := trust.Executable(path, nil); err != nil {
		return aws.Credentials{}, fmt.Errorf("credential_process: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, processTimeout)
	defer cancel()
	result, err := child.Run(ctx, child.Command{Path: path, Args: words[1:], Env: os.Environ(), MaxStdout: 64 << 10})
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("credential_process %s: %w", path, err)
	}
	var out processOutput
	switch err := json.Unmarshal(result.Stdout, &out); {
	case err != nil:
		return aws.Credentials{}, fmt.Errorf("credential_process %s printed no JSON as AWS documents it", path)
	case out.Version != 1:
		return aws.Credentials{}, fmt.Errorf("credential_process %s: Version is %d, want 1", path, out.Version)
	case out.AccessKeyID == "" || out.SecretAccessKey == "":
		return aws.Credentials{}, fmt.Errorf("credential_process %s printed no AccessKeyId or no SecretAccessKey", path)
	case out.Expiration != nil && !out.Expiration.After(time.Now()):
		return aws.Credentials{}, fmt.Errorf("credential_process %s printed credentials that have expired at %s", path, out.Expiration.UTC().Format(time.RFC3339))
	}
	c := aws.Credentials{AccessKeyID: out.AccessKeyID, SecretAccessKey: out.SecretAccessKey, SessionToken: out.SessionToken, Source: "credential_process"}
	if out.Expiration != nil {
		c.CanExpire, c.Expires = true, *out.Expiration
	}
	return c, nil
}

package ecr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"golang.org/x/net/http/httpproxy"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// defaultAudience is the one that IAM's OIDC providers are made for.
const defaultAudience = "sts.amazonaws.com"

// session is what the SDK makes of settings and environment as they are now, for one region, and for one use: files that are exchanged and credentials that are renewed are seen by
// the next one.
type session struct {
	cfg      aws.Config
	sts      *sts.Client
	base     aws.CredentialsProvider // of the SDK's default chain
	baseCall *call                   // with which the chain makes its calls
	web      webidentity.Source      // nil: base is used
	tried    tried
	all      *sessions
	metadata *metadata
}

// sessions are what all sessions of a backend have in common.
type sessions struct {
	own    *Config
	client *awshttp.BuildableClient
	web    webidentity.Source
	// transport is that of all sessions, so that connections are used again. It is the first one's, with AWS_CA_BUNDLE as it was then.
	transport http.RoundTripper
	connect   sync.Once

	mu sync.Mutex
	// retryers, by service and region: each adapts its rate to what is throttled there.
	retryers map[string]aws.RetryerV2
}

func newSessions(c *Config) (*sessions, error) {
	s := &sessions{own: c, retryers: map[string]aws.RetryerV2{}}
	if !c.WebIdentity.IsZero() {
		web, err := webidentity.New(c.WebIdentity, defaultAudience)
		if err != nil {
			return nil, err
		}
		s.web = web
	}
	s.client = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.TLSClientConfig.MinVersion = tls.VersionTLS12
		t.OnProxyConnectResponse = remote.Connected
		if c.Proxy != "" {
			environment := httpproxy.FromEnvironment()
			choose := (&httpproxy.Config{HTTPProxy: string(c.Proxy), HTTPSProxy: string(c.Proxy), NoProxy: environment.NoProxy}).ProxyFunc()
			t.Proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
		}
	})
	return s, nil
}

// retryer is the one for the calls of a service in a region.
func (all *sessions) retryer(service, region string) aws.RetryerV2 {
	all.mu.Lock()
	defer all.mu.Unlock()
	key := service + " " + region
	if all.retryers[key] == nil {
		all.retryers[key] = newRetryer()
	}
	return all.retryers[key]
}

// unknownRegion is what registries have of which only the configuration may know the region.
const unknownRegion = ""

// open reads the environment and the shared configuration files. Nothing is sent yet. The context is that of all the session's calls.
func (all *sessions) open(ctx context.Context, reg registry) (*session, error) {
	c := all.own
	s := &session{web: all.web, all: all, metadata: newMetadata()}
	region := c.stsRegion(reg)
	ctx, s.baseCall = newCall(ctx, all.retryer("sts", region))
	instance := &lazyIMDS{cfg: &s.cfg, http: s.metadata}
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(all.client.WithTimeout(timeLeft(ctx))),
		config.WithRetryer(func() aws.Retryer { return s.baseCall }),
		config.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) { o.Client = lazySTS{s} }),
		config.WithAssumeRoleCredentialOptions(func(o *stscreds.AssumeRoleOptions) {
			if made, ok := o.Client.(*sts.Client); ok { // nil the first time, when the SDK only looks at the options
				o.Client = chainSTS{made, s.stsOptions(reg)}
			}
		}),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = instance }),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient, o.Retryer = s.metadata.patient, metadataRetryer() }),
		// The SDK's own warnings may quote answers.
		config.WithLogger(logging.Nop{}),
	}
	if region == unknownRegion {
		options = append(options, config.WithDefaultRegion(publicRegion))
	} else {
		options = append(options, config.WithRegion(region))
	}
	if c.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, backends.InvalidConfig("", "load the AWS configuration: %w", spoken(err))
	}
	if buildable, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // which has AWS_CA_BUNDLE by now
		all.connect.Do(func() { all.transport = buildable.GetTransport() })
		cfg.HTTPClient = client{&http.Client{Transport: all.transport, CheckRedirect: staysHere, Timeout: timeLeft(ctx)}}
	}
	s.cfg = cfg
	s.base = cfg.Credentials
	s.tried = whatIsTried(cfg, c.Profile)
	if s.tried.process != nil {
		s.base = s.processCredentials(s.tried.process, s.stsOptions(reg))
	}
	s.sts = sts.NewFromConfig(cfg, s.stsOptions(reg))
	return s, nil
}

// lazySTS is the session's client of STS, which is made after the chain.
type lazySTS struct{ *session }

// AssumeRoleWithWebIdentity implements stscreds.AssumeRoleWithWebIdentityAPIClient.
func (l lazySTS) AssumeRoleWithWebIdentity(ctx context.Context, in *sts.AssumeRoleWithWebIdentityInput, options ...func(*sts.Options)) (*sts.AssumeRoleWithWebIdentityOutput, error) {
	return l.sts.AssumeRoleWithWebIdentity(ctx, in, options...)
}

// chainSTS is a client that the chain has made for the role of a profile.
type chainSTS struct {
	*sts.Client
	at func(*sts.Options)
}

// AssumeRole implements stscreds.AssumeRoleAPIClient.
func (c chainSTS) AssumeRole(ctx context.Context, in *sts.AssumeRoleInput, options ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	return c.Client.AssumeRole(ctx, in, append(options, c.at)...)
}

// timeLeft bounds requests that outlive their context: the SDK asks for credentials in the background, so that several may wait for them.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return time.Minute
}

// stsOptions are those of every client of STS.
func (s *session) stsOptions(reg registry) func(*sts.Options) {
	return func(o *sts.Options) {
		switch own := s.all.own; {
		case own.STSEndpoint != "":
			o.BaseEndpoint = &own.STSEndpoint
		case reg.suffix != "" && o.BaseEndpoint == nil:
			o.BaseEndpoint = aws.String("https://sts." + o.Region + "." + reg.suffix)
		}
		if o.BaseEndpoint != nil { // used as it is; the SDK refuses kinds together with an endpoint
			o.EndpointOptions.UseFIPSEndpoint, o.EndpointOptions.UseDualStackEndpoint = aws.FIPSEndpointStateDisabled, aws.DualStackEndpointStateDisabled
		}
	}
}

// staysHere follows no redirect: AWS's APIs have none, and what is sent, a pod's token in it, would be sent once more to wherever one points.
func staysHere(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// api is a client for the ECR API at the endpoint of the registry's kind.
func (s *session) api(as aws.CredentialsProvider, reg registry, call *call) (*ecr.Client, error) {
	var problem error
	client := ecr.NewFromConfig(s.cfg, func(o *ecr.Options) {
		o.Region, o.Credentials, o.Retryer = reg.region, as, call
		switch {
		case s.all.own.Endpoint != "":
			o.BaseEndpoint = &s.all.own.Endpoint
		case reg.suffix != "" && reg.fips && o.BaseEndpoint == nil:
			problem = backends.InvalidConfig("endpoint", "the registry's name asks for FIPS, and where its API has that under %s is not known: name the endpoint here", reg.suffix)
			return
		case reg.suffix != "" && o.BaseEndpoint == nil:
			o.BaseEndpoint = aws.String("https://api.ecr." + reg.region + "." + reg.suffix)
		}
		kind := &o.EndpointOptions
		if o.BaseEndpoint != nil { // used as it is; the SDK refuses kinds together with an endpoint
			kind.UseFIPSEndpoint, kind.UseDualStackEndpoint = aws.FIPSEndpointStateDisabled, aws.DualStackEndpointStateDisabled
			return
		}
		if reg.fips {
			kind.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
		}
		if reg.dualStack {
			kind.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
		}
		switch {
		case kind.UseFIPSEndpoint != aws.FIPSEndpointStateEnabled:
		case !documentsFIPS(reg.region):
			problem = backends.InvalidConfig("endpoint", "AWS documents no FIPS endpoint of ECR for %s (it does for %q): use the registry's name without -fips and AWS_USE_FIPS_ENDPOINT unset, or name the endpoint here", reg.region, fipsRegions)
		case kind.UseDualStackEndpoint != aws.DualStackEndpointStateEnabled:
			// The SDK's rules say api.ecr-fips, which AWS does not document.
			o.BaseEndpoint, kind.UseFIPSEndpoint = aws.String("https://ecr-fips."+reg.region+".amazonaws.com"), aws.FIPSEndpointStateDisabled
		}
	})
	return client, problem
}

// publicAPI is a client for the API of ECR Public.
func (s *session) publicAPI(as aws.CredentialsProvider, reg registry, call *call) *ecrpublic.Client {
	return ecrpublic.NewFromConfig(s.cfg, func(o *ecrpublic.Options) {
		o.Region, o.Credentials, o.Retryer = reg.region, as, call
		kind := &o.EndpointOptions
		// There is no FIPS endpoint of ECR Public.
		kind.UseFIPSEndpoint = aws.FIPSEndpointStateDisabled
		switch {
		case o.BaseEndpoint != nil:
			kind.UseDualStackEndpoint = aws.DualStackEndpointStateDisabled
		case reg.dualStack:
			kind.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
		}
	})
}

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

// noCredentials says what was tried for the node's identity, and what came of it.
func (s *session) noCredentials(err error) error {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	env, shared := s.tried.env, s.tried.shared
	attempts, err := s.baseCall.failure(err)
	why := spoken(err).Error()
	if attempts > 1 {
		why += fmt.Sprintf(", after %d attempts", attempts)
	}
	none := false // there is nothing that could give credentials
	switch {
	case env.Credentials.HasKeys() && s.all.own.Profile == "":
		add("the environment's AWS_ACCESS_KEY_ID (%s)", why)
	case env.WebIdentityTokenFilePath != "" && s.all.own.Profile == "":
		add("AWS_WEB_IDENTITY_TOKEN_FILE %s as AWS_ROLE_ARN %q (%s)", env.WebIdentityTokenFilePath, env.RoleARN, why)
	case s.tried.process != nil:
		add("credential_process of profile %q (%s)", s.tried.process.Profile, why)
	case shared.SSOSession != nil || shared.SSOStartURL != "":
		add("profile %q, SSO (%s): log in again with aws sso login", shared.Profile, why)
	case shared.Credentials.HasKeys() || shared.Source != nil || shared.RoleARN != "" || shared.CredentialSource != "" || shared.LoginSession != "":
		add("profile %q of the shared configuration (%s)", shared.Profile, why)
	default:
		add("environment (no AWS_ACCESS_KEY_ID, no AWS_WEB_IDENTITY_TOKEN_FILE)")
		add("shared configuration (%s)", sharedFiles(env))
		if env.ContainerCredentialsRelativePath != "" || env.ContainerCredentialsEndpoint != "" {
			add("container credentials endpoint (%s)", s.metadata.outcome(err))
			break
		}
		none = true
		add("container credentials endpoint (no AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI)")
		add("instance metadata (%s)", s.metadata.outcome(err))
	}
	text := fmt.Sprintf("no AWS credentials: tried %s: attach an instance role, or set roleARN, webIdentity, profile or the AWS_* variables (named in inheritEnv)", strings.Join(list, "; "))
	found := causeOf(err)
	if _, ok := errors.AsType[*trust.Error](err); ok {
		return backends.InvalidConfig("", "%s", text)
	}
	if none || found == causeInvalid && strings.Contains(env.RoleARN, ":iam:") && !strings.HasPrefix(env.RoleARN, "arn:aws:") {
		return found.kind()(noIdentity("%s", text))
	}
	return found.kind()(&callError{found, text})
}

// sharedFiles says which of the shared configuration files there are.
func sharedFiles(env config.EnvConfig) string {
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
			s += file + " has no credentials for the profile"
		}
	}
	return s
}

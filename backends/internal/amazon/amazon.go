// Package amazon is how AWS's SDK is used here: what its default chain may do and for how long, how often a call is made, and what is said of one that failed. It knows services
// by name only, but for STS, whom the chain itself asks; what is asked, and of whom, is its users' business.
package amazon

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"golang.org/x/net/http/httpproxy"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// Options are what settings say of AWS.
type Options struct {
	// Profile is one of the shared configuration. Empty: AWS_PROFILE, or the default one.
	Profile string
	// Proxy is the URL of the proxy for the APIs, in place of HTTPS_PROXY; NO_PROXY still holds.
	Proxy backends.Secret
	// Remedy is what to do where there are no credentials.
	Remedy string
}

// Sessions are what all sessions of a process have in common.
type Sessions struct {
	options Options
	client  *awshttp.BuildableClient
	// transport is that of all sessions, so that connections are used again. It is the first one's, with AWS_CA_BUNDLE as it was then.
	transport http.RoundTripper
	connect   sync.Once

	mu sync.Mutex
	// retryers, by service and region: each adapts its rate to what is throttled there.
	retryers map[string]aws.RetryerV2
}

// NewSessions reads of the environment what it says of proxies, and nothing else.
func NewSessions(o Options) *Sessions {
	proxies := httpproxy.FromEnvironment()
	if o.Proxy != "" {
		proxies = &httpproxy.Config{HTTPProxy: string(o.Proxy), HTTPSProxy: string(o.Proxy), NoProxy: proxies.NoProxy}
	}
	choose := proxies.ProxyFunc()
	return &Sessions{options: o, retryers: map[string]aws.RetryerV2{}, client: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.TLSClientConfig.MinVersion = tls.VersionTLS12
		t.OnProxyConnectResponse = remote.Connected
		t.Proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
	})}
}

// Call prepares a call of a service in a region. The call is to be made with the context, and with the Call for its retryer.
func (all *Sessions) Call(ctx context.Context, service, region string) (context.Context, *Call) {
	return newCall(ctx, all.retryer(service, region))
}

// retryer is the one for the calls of a service in a region.
func (all *Sessions) retryer(service, region string) aws.RetryerV2 {
	all.mu.Lock()
	defer all.mu.Unlock()
	key := service + " " + region
	if all.retryers[key] == nil {
		all.retryers[key] = newRetryer()
	}
	return all.retryers[key]
}

// Session is what the SDK makes of settings and environment as they are now, for one region, and for one use: files that are exchanged and credentials that are renewed are seen by
// the next one.
type Session struct {
	Config aws.Config
	STS    *sts.Client

	all      *Sessions
	base     aws.CredentialsProvider // of the SDK's default chain
	call     *Call                   // with which the chain makes its calls
	tried    tried
	metadata *metadata
	// unplaced is why the instance's metadata service names no region, if it was asked.
	unplaced string
}

// Where says where a session asks.
type Where struct {
	// Region goes before what environment and shared configuration say; Default is for when they say nothing. Without both, that of the instance is asked for.
	Region, Default string
	// STS changes the options of every client of STS. nil: as they are.
	STS func(*sts.Options)
}

// Open reads the environment and the shared configuration files. Nothing is sent yet, but for the question after the instance's region. The context is that of all the session's calls.
func (all *Sessions) Open(ctx context.Context, w Where) (*Session, error) {
	s := &Session{all: all, metadata: newMetadata()}
	ctx, s.call = all.Call(ctx, "sts", w.Region)
	at := func(o *sts.Options) {
		if o.Region == "" { // the client was made before the instance's region was known
			o.Region = s.Config.Region
		}
		if w.STS != nil {
			w.STS(o)
		}
		if o.BaseEndpoint != nil { // used as it is; the SDK refuses kinds together with an endpoint
			o.EndpointOptions.UseFIPSEndpoint, o.EndpointOptions.UseDualStackEndpoint = aws.FIPSEndpointStateDisabled, aws.DualStackEndpointStateDisabled
		}
	}
	instance := &lazyIMDS{cfg: &s.Config, http: s.metadata}
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(all.client.WithTimeout(timeLeft(ctx))),
		config.WithRetryer(func() aws.Retryer { return s.call }),
		config.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) { o.Client = lazySTS{s} }),
		config.WithAssumeRoleCredentialOptions(func(o *stscreds.AssumeRoleOptions) {
			if made, ok := o.Client.(*sts.Client); ok { // nil the first time, when the SDK only looks at the options
				o.Client = chainSTS{made, at}
			}
		}),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = instance }),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient, o.Retryer = s.metadata.patient, metadataRetryer() }),
		// The SDK's own warnings may quote answers.
		config.WithLogger(logging.Nop{}),
	}
	if w.Region != "" {
		options = append(options, config.WithRegion(w.Region))
	}
	if w.Default != "" {
		options = append(options, config.WithDefaultRegion(w.Default))
	}
	if all.options.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(all.options.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, backends.InvalidConfig("", "load the AWS configuration: %w", spoken(err))
	}
	if buildable, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // which has AWS_CA_BUNDLE by now
		all.connect.Do(func() { all.transport = buildable.GetTransport() })
		cfg.HTTPClient = client{&http.Client{Transport: all.transport, CheckRedirect: staysHere, Timeout: timeLeft(ctx)}}
	}
	s.Config = cfg
	if cfg.Region == "" {
		if s.Config.Region, err = instance.region(ctx); err != nil {
			s.unplaced = s.metadata.outcome(err)
		}
	}
	s.base = cfg.Credentials
	s.tried = whatIsTried(cfg, all.options.Profile)
	if s.tried.process != nil {
		s.base = s.processCredentials(s.tried.process, at)
	}
	s.STS = sts.NewFromConfig(s.Config, at)
	return s, nil
}

// Call is that of the sessions.
func (s *Session) Call(ctx context.Context, service, region string) (context.Context, *Call) {
	return s.all.Call(ctx, service, region)
}

// Region is the session's. The error says where one was looked for, and not what to do.
func (s *Session) Region() (string, error) {
	if s.Config.Region == "" {
		return "", fmt.Errorf("nothing says which region to ask: tried environment (no AWS_REGION, no AWS_DEFAULT_REGION); shared configuration (%s); instance metadata (%s)",
			sharedFiles(s.tried.env, "has no region for the profile"), s.unplaced)
	}
	return s.Config.Region, nil
}

// lazySTS is the session's client of STS, which is made after the chain.
type lazySTS struct{ *Session }

// AssumeRoleWithWebIdentity implements stscreds.AssumeRoleWithWebIdentityAPIClient.
func (l lazySTS) AssumeRoleWithWebIdentity(ctx context.Context, in *sts.AssumeRoleWithWebIdentityInput, options ...func(*sts.Options)) (*sts.AssumeRoleWithWebIdentityOutput, error) {
	return l.STS.AssumeRoleWithWebIdentity(ctx, in, options...)
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

// staysHere follows no redirect: AWS's APIs have none, and what is sent, a pod's token in it, would be sent once more to wherever one points.
func staysHere(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Statement is what to add to a policy.
func Statement(resource string, actions ...string) string {
	quoted := make([]string, 0, len(actions))
	for _, action := range actions {
		quoted = append(quoted, strconv.Quote(action))
	}
	return fmt.Sprintf(`{"Effect":"Allow","Action":[%s],"Resource":%q}`, strings.Join(quoted, ","), resource)
}

package amazon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// metadataTimeout bounds one request to a metadata service. They are on the machine itself, so one that has not answered by then is not there, or its answer is lost on the way: an
// instance whose hop limit is 1 never answers a container.
const metadataTimeout = time.Second

// containerTimeout bounds one request to a container credentials endpoint.
const containerTimeout = 5 * time.Second

// metadata is how metadata services are asked: never through a proxy, never for long, never elsewhere. It remembers the last thing that came of it, since the SDK's errors bury that.
type metadata struct {
	// client is for what answers from the machine itself, patient for what has to ask elsewhere before it answers, as EKS's agent does.
	client, patient *http.Client

	mu   sync.Mutex
	last string
}

func newMetadata() *metadata {
	m := &metadata{}
	transport := &http.Transport{ // without Proxy
		DialContext:     (&net.Dialer{Timeout: metadataTimeout}).DialContext,
		MaxIdleConns:    2,
		IdleConnTimeout: 10 * time.Second,
	}
	observed := roundTripper(func(r *http.Request) (*http.Response, error) { return m.heed(r)(transport.RoundTrip(r)) })
	m.client = &http.Client{Timeout: metadataTimeout, Transport: observed, CheckRedirect: staysHere}
	m.patient = &http.Client{Timeout: containerTimeout, Transport: observed, CheckRedirect: staysHere}
	return m
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// heed notes what came of a request.
func (m *metadata) heed(r *http.Request) func(*http.Response, error) (*http.Response, error) {
	began := time.Now()
	return func(response *http.Response, err error) (*http.Response, error) {
		var refused *net.OpError
		var s string
		switch {
		case err == nil && response.StatusCode < 300:
			// What is wrong then, the SDK says best.
		case err == nil:
			s = fmt.Sprintf("status %d", response.StatusCode)
			switch {
			case response.StatusCode == http.StatusNotFound && strings.Contains(r.URL.Path, "/security-credentials"):
				s += ": the instance has no role"
			case response.StatusCode == http.StatusForbidden:
				s += ": it is switched off for this instance"
			}
		case time.Since(began) >= metadataTimeout*9/10, r.Context().Err() != nil: // the client's time began a little before
			s = fmt.Sprintf("no answer within %s: there is none here, or the instance's hop limit is too low for a container", time.Since(began).Round(time.Second))
		case errors.As(err, &refused):
			s = remote.Cut(refused.Err.Error())
		default:
			s = "no answer"
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.last = ""; s != "" {
			m.last = r.URL.Host + ": " + s
		}
		return response, err
	}
}

// outcome is the last of them; if nothing was asked, what the SDK says.
func (m *metadata) outcome(err error) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last != "" {
		return m.last
	}
	return spoken(err).Error()
}

// metadataRetryer tries again what a metadata service refused for the moment (429, 5xx), but not what nobody answered: an absent one has to be known soon.
func metadataRetryer() aws.Retryer {
	return impatient{retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxBackoff = 200 * time.Millisecond
		o.Retryables = append(o.Retryables, retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}})
	})}
}

type impatient struct{ *retry.Standard }

func (i impatient) IsErrorRetryable(err error) bool {
	var unanswered *url.Error
	return !errors.As(err, &unanswered) && i.Standard.IsErrorRetryable(err)
}

// lazyIMDS is made when the chain comes to it, from the configuration that has been loaded by then.
type lazyIMDS struct {
	cfg  *aws.Config
	http *metadata
	once sync.Once
	imds *imds.Client
}

// client is made from what the SDK makes of environment and files.
func (l *lazyIMDS) client() *imds.Client {
	l.once.Do(func() {
		l.imds = imds.NewFromConfig(*l.cfg, func(o *imds.Options) {
			o.HTTPClient, o.Retryer = l.http.client, metadataRetryer()
			if o.EnableFallback == aws.UnknownTernary { // AWS_EC2_METADATA_V1_DISABLED and the profile say nothing
				o.EnableFallback = aws.FalseTernary // IMDSv2 only: the first version's answers can be had through any open proxy on the machine
			}
		})
	})
	return l.imds
}

// GetMetadata implements ec2rolecreds.GetMetadataAPIClient.
func (l *lazyIMDS) GetMetadata(ctx context.Context, in *imds.GetMetadataInput, options ...func(*imds.Options)) (*imds.GetMetadataOutput, error) {
	return l.client().GetMetadata(ctx, in, options...)
}

// region is the instance's.
func (l *lazyIMDS) region(ctx context.Context) (string, error) {
	out, err := l.client().GetRegion(ctx, &imds.GetRegionInput{})
	if err != nil {
		return "", err
	}
	return out.Region, nil
}

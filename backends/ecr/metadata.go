package ecr

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// metadataTimeout bounds one request to a metadata service. They are on the machine itself, so one that has not answered by then is not there, or its answer is lost on the way: an
// instance whose hop limit is 1 never answers a container.
const metadataTimeout = time.Second

// metadataClient asks metadata services: never through a proxy, never for long, never elsewhere.
var metadataClient = sync.OnceValue(func() *http.Client {
	return &http.Client{
		Timeout: metadataTimeout,
		Transport: &http.Transport{
			Proxy:             nil,
			DialContext:       (&net.Dialer{Timeout: metadataTimeout}).DialContext,
			MaxIdleConns:      2,
			IdleConnTimeout:   10 * time.Second,
			ForceAttemptHTTP2: false,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
})

// metadataRetryer tries again what a metadata service refused for the moment (429, 5xx), but not what it did not answer: an absent one has to be known soon.
func metadataRetryer() aws.Retryer {
	return impatient{retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxBackoff = 200 * time.Millisecond
		o.Retryables = append(o.Retryables, retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}})
	})}
}

type impatient struct{ *retry.Standard }

func (i impatient) IsErrorRetryable(err error) bool {
	var timeout net.Error
	return !(errors.As(err, &timeout) && timeout.Timeout()) && i.Standard.IsErrorRetryable(err)
}

// lazyIMDS is made when the chain comes to it, from the configuration that has been loaded by then.
type lazyIMDS struct {
	cfg  *aws.Config
	once sync.Once
	imds *imds.Client
}

// GetMetadata implements ec2rolecreds.GetMetadataAPIClient.
func (l *lazyIMDS) GetMetadata(ctx context.Context, in *imds.GetMetadataInput, options ...func(*imds.Options)) (*imds.GetMetadataOutput, error) {
	l.once.Do(func() {
		l.imds = imds.NewFromConfig(*l.cfg, func(o *imds.Options) {
			o.HTTPClient, o.Retryer = metadataClient(), metadataRetryer()
			o.EnableFallback = aws.FalseTernary // IMDSv2 only: the first version's answers can be had through any open proxy on the machine
		})
	})
	return l.imds.GetMetadata(ctx, in, options...)
}

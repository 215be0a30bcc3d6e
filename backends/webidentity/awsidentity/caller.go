package awsidentity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// globalRegion is the one that requests for STS's global endpoint are signed for (https://docs.aws.amazon.com/STS/latest/APIReference/welcome.html).
const globalRegion = "us-east-1"

// callerIdentity is the body of the request, as STS's query protocol has it.
const callerIdentity = "Action=GetCallerIdentity&Version=2011-06-15"

// sign signs a request for sts:GetCallerIdentity as whomever the SDK's default chain finds. AWS is asked for nothing but the credentials.
func sign(ctx context.Context, c awsprogram.CallerIdentity) (*awsprogram.Request, error) {
	where := amazon.Where{Region: c.Region}
	switch c.Region {
	case "": // the chain may have to ask STS itself, and does so in its own region
		where.Default = globalRegion
	case awsprogram.RegionAuto:
		where.Region = ""
	}
	session, err := newSessions().Open(ctx, where)
	if err != nil {
		return nil, err
	}
	as, err := session.Identity(ctx)
	if err != nil {
		return nil, err
	}
	credentials, err := as.Retrieve(ctx) // those that it has just found
	if err != nil {
		return nil, backends.Unavailable(errors.New("the AWS credentials are gone again"))
	}
	region := globalRegion
	if c.Region != "" {
		if region, err = session.Region(); err != nil {
			return nil, noRegion(err)
		}
	}
	endpoint := c.Endpoint
	if endpoint == "" {
		if endpoint, err = endpointOf(ctx, region, c.Region == ""); err != nil {
			return nil, backends.InvalidConfig(".region", "there is no region %q: want one such as eu-west-1", region)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(endpoint, "/")+"/", strings.NewReader(callerIdentity))
	if err != nil {
		return nil, backends.InvalidConfig("", "want the URL of an STS, such as https://sts.eu-west-1.amazonaws.com")
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	for name, value := range c.Header {
		r.Header.Set(name, value)
	}
	sum := sha256.Sum256([]byte(callerIdentity))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, r, hex.EncodeToString(sum[:]), "sts", region, time.Now()); err != nil {
		return nil, backends.Unavailable(errors.New("the request for GetCallerIdentity cannot be signed"))
	}
	return &awsprogram.Request{Method: r.Method, URL: r.URL.String(), Body: callerIdentity, Header: r.Header}, nil
}

// endpointOf is the URL of STS in a region, in whatever partition that is, or of the global one.
func endpointOf(ctx context.Context, region string, global bool) (string, error) {
	if !webidentity.IsRegion(region) { // the environment's may be anything, and becomes part of a host name
		return "", errors.New("no region")
	}
	e, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{
		Region: aws.String(region), UseGlobalEndpoint: aws.Bool(global), UseFIPS: aws.Bool(false), UseDualStack: aws.Bool(false),
	})
	if err != nil {
		return "", err
	}
	u := url.URL{Scheme: e.URI.Scheme, Host: e.URI.Host}
	return u.String(), nil
}

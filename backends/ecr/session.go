package ecr

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// defaultAudience is the one that IAM's OIDC providers are made for.
const defaultAudience = "sts.amazonaws.com"

// session is AWS's SDK for the registries of a region.
type session struct {
	*amazon.Session
	web webidentity.Source // nil: whom the SDK's default chain finds
	own *Config
}

// sessions are what all sessions of a backend have in common.
type sessions struct {
	*amazon.Sessions
	own *Config
	web webidentity.Source
}

// webSources: whoever has an AWS identity needs no token to prove it to AWS, which does not take its own.
var webSources = webidentity.Sources{InsteadOfAWS: "an AWS identity needs no webIdentity: remove it"}

func newSessions(c *Config) (*sessions, error) {
	s := &sessions{own: c, Sessions: amazon.NewSessions(amazon.Options{
		Profile: c.Profile, Proxy: c.Proxy, Remedy: "attach an instance role, or set roleARN, webIdentity, profile or the AWS_* variables (named in inheritEnv)",
	})}
	if !c.WebIdentity.IsZero() {
		web, err := webidentity.New(c.WebIdentity, defaultAudience, webSources)
		if err != nil {
			return nil, err
		}
		s.web = web
	}
	return s, nil
}

// unknownRegion is what registries have of which only the configuration may know the region.
const unknownRegion = ""

// open reads the environment and the shared configuration files. Nothing is sent yet. The context is that of all the session's calls.
func (all *sessions) open(ctx context.Context, reg registry) (*session, error) {
	where := amazon.Where{Region: all.own.stsRegion(reg), STS: all.own.stsOptions(reg)}
	if where.Region == unknownRegion {
		where.Default = publicRegion
	}
	s, err := all.Open(ctx, where)
	if err != nil {
		return nil, err
	}
	return &session{Session: s, web: all.web, own: all.own}, nil
}

// stsOptions are those of every client of STS.
func (c *Config) stsOptions(reg registry) func(*sts.Options) {
	return func(o *sts.Options) {
		switch {
		case c.STSEndpoint != "":
			o.BaseEndpoint = &c.STSEndpoint
		case reg.suffix != "" && o.BaseEndpoint == nil:
			o.BaseEndpoint = aws.String("https://sts." + o.Region + "." + reg.suffix)
		}
	}
}

// api is a client for the ECR API at the endpoint of the registry's kind.
func (s *session) api(as aws.CredentialsProvider, reg registry, call *amazon.Call) (*ecr.Client, error) {
	var problem error
	client := ecr.NewFromConfig(s.Config, func(o *ecr.Options) {
		o.Region, o.Credentials, o.Retryer = reg.region, as, call
		switch {
		case s.own.Endpoint != "":
			o.BaseEndpoint = &s.own.Endpoint
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
func (s *session) publicAPI(as aws.CredentialsProvider, reg registry, call *amazon.Call) *ecrpublic.Client {
	return ecrpublic.NewFromConfig(s.Config, func(o *ecrpublic.Options) {
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

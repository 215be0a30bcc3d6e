// Package awsidentity is the source of identity tokens that AWS itself issues to whoever has an AWS identity
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_outbound_getting_started.html), and signs requests by which others learn of such an identity. It is apart from package webidentity because
// it brings AWS's SDK, whose size and start no program should have that does not offer the source.
package awsidentity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// timeout bounds all of one question: the chain's search for credentials, and STS.
const timeout = 10 * time.Second

// source is AWS's Security Token Service.
type source struct {
	webidentity.AWS
	audience string
	sessions *amazon.Sessions
}

// New is for webidentity.Sources. It reads of the environment what it says of proxies, and nothing else.
func New(c webidentity.AWS, audience string) webidentity.Source {
	return &source{AWS: c, audience: audience, sessions: newSessions()}
}

func newSessions() *amazon.Sessions {
	return amazon.NewSessions(amazon.Options{
		Remedy: "attach a role to the instance, use EKS Pod Identity or IRSA, or name the AWS_* variables in the provider's inheritEnv",
	})
}

// Token asks as whomever the SDK's default chain finds (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html).
func (s *source) Token(ctx context.Context) (webidentity.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	session, err := s.sessions.Open(ctx, amazon.Where{Region: s.Region})
	if err != nil {
		return webidentity.Token{}, err
	}
	as, err := session.Identity(ctx)
	if err != nil {
		return webidentity.Token{}, err
	}
	region, err := session.Region()
	if err != nil {
		return webidentity.Token{}, noRegion(err)
	}
	ctx, call := session.Call(ctx, "sts", region)
	out, err := session.STS.GetWebIdentityToken(ctx, &sts.GetWebIdentityTokenInput{
		Audience:         []string{s.audience},
		SigningAlgorithm: aws.String(string(s.SigningAlgorithm)),
		DurationSeconds:  aws.Int32(int32(s.Duration / time.Second)), // an hour at most
	}, func(o *sts.Options) { o.Credentials, o.Retryer = as, call })
	if err != nil {
		return webidentity.Token{}, s.refusal(call, err)
	}
	return webidentity.Token{Value: backends.Secret(aws.ToString(out.WebIdentityToken)), Expires: aws.ToTime(out.Expiration)}, nil
}

// noRegion is what to do where nothing says which region it is.
func noRegion(err error) error {
	return backends.InvalidConfig(".region", "%w: set it, or name AWS_REGION in the provider's inheritEnv", err)
}

// The codes of the operation, without the Exception that some end with: AWS's reference has them without it, the SDK's model and the answers with it.
const (
	codeDisabled  = "OutboundWebIdentityFederationDisabled"
	codeTooLong   = "SessionDurationEscalation"
	codeTooMuch   = "JWTPayloadSizeExceeded"
	codeNowhere   = "InvalidAction"
	codeForbidden = "AccessDenied"
)

func codeOf(err error) string {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return ""
	}
	return strings.TrimSuffix(api.ErrorCode(), "Exception")
}

// refusal says what a failure of the operation means.
func (s *source) refusal(call *amazon.Call, err error) error {
	said := call.Explain(err, "", func(_ amazon.Cause, why error) string { return s.advice(codeOf(why)) })
	switch codeOf(err) {
	case codeNowhere:
		return backends.InvalidConfig(".region", "%w", said)
	case codeTooLong: // the next session is a longer one
		return backends.Unavailable(said)
	case codeTooMuch:
		return backends.Refused(said)
	}
	return said
}

func (s *source) advice(code string) string {
	switch code {
	case codeDisabled:
		return "the account issues no tokens: somebody who may has to enable that once, with `aws iam enable-outbound-web-identity-federation`"
	case codeForbidden:
		return fmt.Sprintf("the identity's policy must allow %s, and its conditions, if there are any, audience %q, %s and %d seconds",
			amazon.Statement("*", "sts:GetWebIdentityToken"), s.audience, s.SigningAlgorithm, int(s.Duration.Seconds()))
	case codeTooLong:
		return fmt.Sprintf("the AWS credentials expire before the token would, which is asked for %s: set a shorter duration, or use credentials that last", s.Duration)
	case codeTooMuch:
		return "the identity has more tags than a token can tell: take some away"
	case codeNowhere:
		return "there is no such operation at this endpoint: name a region, since the global endpoint has none, and mend AWS_ENDPOINT_URL_STS if it is set"
	}
	return ""
}

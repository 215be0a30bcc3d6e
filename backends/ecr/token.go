package ecr

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	"github.com/aws/smithy-go/middleware"

	"github.com/credential-broker/credential-broker/backends"
)

// token is what docker login takes.
type token struct {
	username string
	password backends.Secret
	expires  time.Time
}

// authorizationToken asks ECR (GetAuthorizationToken) with the given credentials.
func (s *session) authorizationToken(ctx context.Context, as aws.CredentialsProvider, reg registry) (token, error) {
	service := "ecr"
	if reg.public {
		service = "ecr-public"
	}
	ctx, call := s.Call(ctx, service, reg.region)
	var data *string
	var expires *time.Time
	var answer middleware.Metadata
	var err error
	if reg.public {
		var out *ecrpublic.GetAuthorizationTokenOutput
		out, err = s.publicAPI(as, reg, call).GetAuthorizationToken(ctx, &ecrpublic.GetAuthorizationTokenInput{})
		if err == nil && out.AuthorizationData != nil {
			data, expires, answer = out.AuthorizationData.AuthorizationToken, out.AuthorizationData.ExpiresAt, out.ResultMetadata
		}
	} else {
		var api *ecr.Client
		if api, err = s.api(as, reg, call); err != nil {
			return token{}, err
		}
		var out *ecr.GetAuthorizationTokenOutput
		out, err = api.GetAuthorizationToken(ctx, &ecr.GetAuthorizationTokenInput{})
		if err == nil && len(out.AuthorizationData) > 0 {
			data, expires, answer = out.AuthorizationData[0].AuthorizationToken, out.AuthorizationData[0].ExpiresAt, out.ResultMetadata
		}
	}
	if err != nil {
		return token{}, call.Explain(err, "get a token for "+reg.String(), tokenAdvice(reg))
	}
	t, ok := decodeToken(aws.ToString(data))
	if !ok {
		return token{}, backends.Unavailable(fmt.Errorf("get a token for %s: the answer holds none in the form that AWS documents (base64 of user:password)", reg))
	}
	if expires != nil {
		t.expires = expires.Add(-aheadOfUs(answer))
	}
	return t, nil
}

// aheadOfUs is how far AWS's clock is ahead of this machine's, by which times are judged here. Less than a minute counts as nothing: it may be the way that the answer took.
func aheadOfUs(answer middleware.Metadata) time.Duration {
	theirs, ok := awsmiddleware.GetServerTime(answer)
	ours, known := awsmiddleware.GetResponseAt(answer)
	if ahead := theirs.Sub(ours); ok && known && ahead.Abs() > time.Minute {
		return ahead + time.Second // the Date header has whole seconds
	}
	return 0
}

func decodeToken(data string) (token, bool) {
	decoded, err := base64.StdEncoding.DecodeString(data)
	username, password, ok := strings.Cut(string(decoded), ":")
	return token{username: username, password: backends.Secret(password)}, err == nil && ok && username != "" && password != ""
}

// tokenKey is what a token depends on.
type tokenKey struct {
	who      string
	endpoint registry // without host and account
}

package ecr

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

func noIdentity(format string, args ...any) error {
	return &amazon.NoIdentityError{Text: fmt.Sprintf(format, args...)}
}

// anonymousWillDo reports whether an image of ECR Public is to be pulled without a token: nobody asks, or whoever asks may not, or is of a partition whose keys mean nothing there.
func anonymousWillDo(err error) bool {
	if _, ok := errors.AsType[*amazon.NoIdentityError](err); ok {
		return true
	}
	e, ok := errors.AsType[*amazon.CallError](err)
	return ok && (e.Cause == amazon.CauseDenied || e.Cause == amazon.CauseUnknownKey)
}

// tokenAdvice is for GetAuthorizationToken.
func tokenAdvice(reg registry) amazon.Advice {
	return func(c amazon.Cause, _ error) string {
		switch {
		case c == amazon.CauseDenied && reg.public:
			return `the identity's policy must allow ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on "*"`
		case c == amazon.CauseDenied:
			return `the identity's policy must allow ecr:GetAuthorizationToken on "*"`
		}
		return ""
	}
}

// assumeAdvice is for AssumeRole.
func assumeAdvice(r Role) amazon.Advice {
	return func(c amazon.Cause, _ error) string {
		if c != amazon.CauseDenied {
			return ""
		}
		s := "the role's trust policy must allow sts:AssumeRole to this identity"
		if r.ExternalID != "" {
			s += " with this externalID"
		}
		if len(r.SessionTags) > 0 {
			s += ", and sts:TagSession"
		}
		return s + "; in another account, the identity's own policy must allow sts:AssumeRole on the role as well"
	}
}

// assumeWithTokenAdvice is for AssumeRoleWithWebIdentity. What the token says of itself is no secret, and what the role's account has to know.
func assumeWithTokenAdvice(token string) amazon.Advice {
	return func(c amazon.Cause, err error) string {
		claims, parseErr := webidentity.ParseClaims(token)
		api, ok := errors.AsType[smithy.APIError](err)
		if parseErr != nil || !ok {
			return ""
		}
		party := ""
		if claims.AuthorizedParty != "" {
			party = fmt.Sprintf(", azp %q", remote.Cut(claims.AuthorizedParty))
		}
		audience := remote.Cut(strings.Join(claims.Audience, " "))
		switch {
		case api.ErrorCode() == "InvalidIdentityToken":
			return fmt.Sprintf("the role's account needs an IAM OIDC provider for issuer %q with audience %q%s", remote.Cut(claims.Issuer), audience, party)
		case c == amazon.CauseDenied:
			return fmt.Sprintf("the role's trust policy must allow sts:AssumeRoleWithWebIdentity to issuer %q with sub %q, aud %q%s", remote.Cut(claims.Issuer), remote.Cut(claims.Subject), audience, party)
		case c == amazon.CauseExpired:
			return fmt.Sprintf("the token has expired at %s, by AWS's clock", claims.Expires.UTC().Format(time.RFC3339))
		}
		return ""
	}
}

package ecr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// cause is what kind of thing went wrong, as far as it matters for what to do.
type cause int

const (
	causeOther       cause = iota // worth asking again
	causeInvalid                  // AWS did not take the request
	causeDenied                   // the identity may not
	causeUnknownKey               // AWS does not know the identity
	causeExpired                  // the session or token has expired
	causeClock                    // this machine's clock is wrong
	causeThrottled                // too many requests
	causeUntrusted                // whoever answered is not known to be AWS
	causeUnreachable              // no answer
)

// kind is what the cause means for asking again.
func (c cause) kind() func(error) error {
	switch c {
	case causeInvalid, causeDenied, causeUnknownKey, causeClock, causeUntrusted:
		return backends.Refused
	default:
		return backends.Unavailable
	}
}

// callError is a call to AWS that failed. Its text is made of the SDK's typed fields and never of what was answered.
type callError struct {
	cause cause
	text  string
}

func (e *callError) Error() string { return e.text }

// noIdentityError says that there is nobody to ask as.
type noIdentityError struct{ text string }

func (e *noIdentityError) Error() string { return e.text }

func noIdentity(format string, args ...any) error {
	return &noIdentityError{fmt.Sprintf(format, args...)}
}

// anonymousWillDo reports whether an image of ECR Public is to be pulled without a token: nobody asks, or whoever asks may not, or is of a partition whose keys mean nothing there.
func anonymousWillDo(err error) bool {
	if _, ok := errors.AsType[*noIdentityError](err); ok {
		return true
	}
	e, ok := errors.AsType[*callError](err)
	return ok && (e.cause == causeDenied || e.cause == causeUnknownKey)
}

// codes are the causes behind AWS's error codes (API references of ECR and STS, "Common Errors"). Signatures are looked at more closely: see causeOf.
var codes = map[string]cause{
	"AccessDenied":                causeDenied,
	"AccessDeniedException":       causeDenied,
	"UnauthorizedOperation":       causeDenied,
	"NotAuthorized":               causeDenied,
	"OptInRequired":               causeDenied,
	"RegionDisabledException":     causeDenied,
	"UnrecognizedClientException": causeUnknownKey,
	"InvalidClientTokenId":        causeUnknownKey,
	"ExpiredToken":                causeExpired,
	"ExpiredTokenException":       causeExpired,
	"RequestExpired":              causeClock,
	"RequestTimeTooSkewed":        causeClock,
	"InvalidSignatureException":   causeInvalid,
	"SignatureDoesNotMatch":       causeInvalid,
	"InvalidIdentityToken":        causeDenied,
	"IDPRejectedClaim":            causeDenied,
	"ValidationError":             causeInvalid,
	"ValidationException":         causeInvalid,
	"InvalidParameterException":   causeInvalid,
}

// maxSkew is how far a clock may be off before AWS refuses signatures (5 minutes for most services).
const maxSkew = 4 * time.Minute

func causeOf(err error) cause {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code := api.ErrorCode()
		if _, throttled := retry.DefaultThrottleErrorCodes[code]; throttled {
			return causeThrottled
		}
		c := codes[code]
		if c == causeInvalid || c == causeDenied {
			if skew := skewOf(err); skew.Abs() > maxSkew && strings.Contains(code, "Signature") {
				return causeClock
			}
		}
		if c != causeOther {
			return c
		}
	}
	switch statusOf(err) {
	case 0:
	case http.StatusTooManyRequests:
		return causeThrottled
	case http.StatusForbidden, http.StatusUnauthorized:
		return causeDenied
	default:
		return causeOther
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return causeUntrusted
	}
	if _, ok := errors.AsType[*url.Error](err); ok || errors.Is(err, context.DeadlineExceeded) {
		return causeUnreachable
	}
	return causeOther
}

// statusOf is the HTTP status of the answer; 0 if there was none.
func statusOf(err error) int {
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && response.Response != nil && response.Response.Response != nil {
		return response.Response.StatusCode
	}
	return 0
}

// skewOf is how far this machine's clock is ahead of that of whoever answered; 0 if that is not known.
func skewOf(err error) time.Duration {
	if statusOf(err) == 0 {
		return 0
	}
	response, _ := errors.AsType[*smithyhttp.ResponseError](err)
	date, parseErr := http.ParseTime(response.Response.Header.Get("Date"))
	if parseErr != nil {
		return 0
	}
	return time.Since(date)
}

// validCode reports what may be repeated of an answer: an error code or a request ID, and nothing that looks otherwise.
func validCode(s string) bool { return consistsOf(s, ".:_-", 1, 100) }

// spoken makes an error of the SDK fit for a message: what was called, and the code, status and request ID of the answer.
func spoken(err error) error {
	what := ""
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		what = op.Service() + " " + op.Operation() + ": "
		err = op.Err
	}
	status := statusOf(err)
	api, hasCode := errors.AsType[smithy.APIError](err)
	var unreadable *smithy.DeserializationError
	switch {
	case hasCode && validCode(api.ErrorCode()):
		what += api.ErrorCode()
	case errors.As(err, &unreadable):
		what += "the answer is not what AWS documents"
	case hasCode, status != 0:
		what += "refused without a code that is known"
	default:
		what += unanswered(err)
	}
	if status != 0 {
		what += fmt.Sprintf(" (status %d", status)
		if with, ok := errors.AsType[*awshttp.ResponseError](err); ok && validCode(with.ServiceRequestID()) {
			what += ", request " + with.ServiceRequestID()
		}
		what += ")"
	}
	return errors.New(what)
}

// unanswered is the text of an error to which no answer has led.
func unanswered(err error) string {
	var timeout net.Error
	sent, wasSent := errors.AsType[*url.Error](err)
	host := ""
	if wasSent {
		if u, parseErr := url.Parse(sent.URL); parseErr == nil {
			host = u.Host + ": "
		}
	}
	certificate, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return host + "no answer in time"
	case errors.Is(err, context.Canceled):
		return host + "given up"
	case untrusted:
		return host + remote.Cut(certificate.Err.Error())
	case wasSent:
		return host + remote.Cut(unsent(sent.Err))
	}
	text := err.Error()
	// A time that is none is quoted, and the SDK does not always wrap the error that does so.
	if before, _, found := strings.Cut(text, `parsing time "`); found {
		text = before + "not a time"
	}
	// The SDK's wrapping of it says nothing more.
	for _, prefix := range []string{"failed to refresh cached credentials, ", "get identity: ", "get credentials: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return remote.Cut(text)
}

// unsent is why a request got no answer. Other errors of net/http quote what came (the first line of an answer that is none, a proxy's words).
func unsent(err error) string {
	if proxy, ok := errors.AsType[*remote.ProxyError](err); ok {
		return proxy.Error()
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return record.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Error()
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return alert.Error()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the connection was closed before there was an answer"
	}
	return "no valid HTTP answer came"
}

// advice says what to do about a cause; empty where the general advice will do.
type advice func(c cause, err error) string

// explain makes the error of a call: what was being done, what came of it, and what to do.
func (c *call) explain(err error, doing string, specific advice) error {
	attempts, why := c.failure(err)
	found := causeOf(why)
	text := doing + ": " + spoken(why).Error()
	if attempts > 1 {
		text += fmt.Sprintf(", after %d attempts", attempts)
	}
	remedy := specific(found, why)
	if remedy == "" {
		remedy = generalAdvice(found, why)
	}
	if remedy != "" {
		text += ": " + remedy
	}
	return found.kind()(&callError{found, text})
}

func generalAdvice(c cause, err error) string {
	switch c {
	case causeThrottled:
		return "throttled: AWS allows so many calls per account and region; a longer cacheDuration, or an agent on the node, makes fewer"
	case causeClock:
		if skew := skewOf(err).Round(time.Second); skew.Abs() > maxSkew {
			where := "ahead of"
			if skew < 0 {
				where = "behind"
			}
			return fmt.Sprintf("this machine's clock is %s %s AWS's: set it (timedatectl, chronyc)", skew.Abs(), where)
		}
		return "this machine's clock is wrong: set it (timedatectl, chronyc)"
	case causeExpired:
		return "the credentials have expired: whoever provides them has to renew them"
	case causeUnknownKey:
		return "AWS does not know this access key: it is deleted, or of another partition"
	case causeInvalid:
		if api, ok := errors.AsType[smithy.APIError](err); ok && strings.Contains(api.ErrorCode(), "Signature") {
			return "the secret access key does not belong to the access key, or something on the way changes requests"
		}
	case causeUntrusted:
		return "if a proxy answers in AWS's place, name the file of its CA in AWS_CA_BUNDLE"
	case causeUnreachable:
		return "the way there has to be open: routes, a VPC endpoint, or HTTPS_PROXY"
	case causeDenied, causeOther:
	}
	return ""
}

// tokenAdvice is for GetAuthorizationToken.
func tokenAdvice(reg registry) advice {
	return func(c cause, _ error) string {
		switch {
		case c == causeDenied && reg.public:
			return `the identity's policy must allow ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on "*"`
		case c == causeDenied:
			return `the identity's policy must allow ecr:GetAuthorizationToken on "*"`
		}
		return ""
	}
}

// assumeAdvice is for AssumeRole.
func assumeAdvice(r Role) advice {
	return func(c cause, _ error) string {
		if c != causeDenied {
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
func assumeWithTokenAdvice(token string) advice {
	return func(c cause, err error) string {
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
		case c == causeDenied:
			return fmt.Sprintf("the role's trust policy must allow sts:AssumeRoleWithWebIdentity to issuer %q with sub %q, aud %q%s", remote.Cut(claims.Issuer), remote.Cut(claims.Subject), audience, party)
		case c == causeExpired:
			return fmt.Sprintf("the token has expired at %s, by AWS's clock", claims.Expires.UTC().Format(time.RFC3339))
		}
		return ""
	}
}

package amazon

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
)

// Cause is what kind of thing went wrong, as far as it matters for what to do.
type Cause int

// The causes.
const (
	CauseOther       Cause = iota // worth asking again
	CauseInvalid                  // AWS did not take the request
	CauseDenied                   // the identity may not
	CauseUnknownKey               // AWS does not know the identity
	CauseExpired                  // the session or token has expired
	CauseClock                    // this machine's clock is wrong
	CauseThrottled                // too many requests
	CauseUntrusted                // whoever answered is not known to be AWS
	CauseUnreachable              // no answer
)

// Kind marks an error with what the cause means for asking again.
func (c Cause) Kind() func(error) error {
	switch c {
	case CauseInvalid, CauseDenied, CauseUnknownKey, CauseClock, CauseUntrusted:
		return backends.Refused
	default:
		return backends.Unavailable
	}
}

// CallError is a call to AWS that failed. Its text is made of the SDK's typed fields and never of what was answered.
type CallError struct {
	Cause Cause
	Text  string
}

func (e *CallError) Error() string { return e.Text }

// NoIdentityError says that there is nobody to ask as.
type NoIdentityError struct{ Text string }

func (e *NoIdentityError) Error() string { return e.Text }

// codes are the causes behind AWS's error codes (API references of ECR and STS, "Common Errors"). Signatures are looked at more closely: see CauseOf.
var codes = map[string]Cause{
	"AccessDenied":                CauseDenied,
	"AccessDeniedException":       CauseDenied,
	"UnauthorizedOperation":       CauseDenied,
	"NotAuthorized":               CauseDenied,
	"OptInRequired":               CauseDenied,
	"RegionDisabledException":     CauseDenied,
	"UnrecognizedClientException": CauseUnknownKey,
	"InvalidClientTokenId":        CauseUnknownKey,
	"ExpiredToken":                CauseExpired,
	"ExpiredTokenException":       CauseExpired,
	"RequestExpired":              CauseClock,
	"RequestTimeTooSkewed":        CauseClock,
	"InvalidSignatureException":   CauseInvalid,
	"SignatureDoesNotMatch":       CauseInvalid,
	"InvalidIdentityToken":        CauseDenied,
	"IDPRejectedClaim":            CauseDenied,
	"ValidationError":             CauseInvalid,
	"ValidationException":         CauseInvalid,
	"InvalidParameterException":   CauseInvalid,
}

// maxSkew is how far a clock may be off before AWS refuses signatures (5 minutes for most services).
const maxSkew = 4 * time.Minute

// CauseOf is what an error of the SDK comes from.
func CauseOf(err error) Cause {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code := api.ErrorCode()
		if _, throttled := retry.DefaultThrottleErrorCodes[code]; throttled {
			return CauseThrottled
		}
		c := codes[code]
		if c == CauseInvalid || c == CauseDenied {
			if skew := skewOf(err); skew.Abs() > maxSkew && strings.Contains(code, "Signature") {
				return CauseClock
			}
		}
		if c != CauseOther {
			return c
		}
	}
	switch statusOf(err) {
	case 0:
	case http.StatusTooManyRequests:
		return CauseThrottled
	case http.StatusForbidden, http.StatusUnauthorized:
		return CauseDenied
	default:
		return CauseOther
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return CauseUntrusted
	}
	if _, ok := errors.AsType[*url.Error](err); ok || errors.Is(err, context.DeadlineExceeded) {
		return CauseUnreachable
	}
	return CauseOther
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
func validCode(s string) bool {
	return len(s) >= 1 && len(s) <= 100 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".:_-", r)
	})
}

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

// Advice says what to do about a cause; empty where the general advice will do.
type Advice func(c Cause, err error) string

// Explain makes the error of a call: what was being done (empty: whoever asks says so), what came of it, and what to do. Its kind is the cause's.
func (c *Call) Explain(err error, doing string, specific Advice) error {
	attempts, why := c.failure(err)
	found := CauseOf(why)
	text := spoken(why).Error()
	if doing != "" {
		text = doing + ": " + text
	}
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
	return found.Kind()(&CallError{found, text})
}

func generalAdvice(c Cause, err error) string {
	switch c {
	case CauseThrottled:
		return "throttled: AWS allows so many calls per account and region; a longer cacheDuration, or an agent on the node, makes fewer"
	case CauseClock:
		if skew := skewOf(err).Round(time.Second); skew.Abs() > maxSkew {
			where := "ahead of"
			if skew < 0 {
				where = "behind"
			}
			return fmt.Sprintf("this machine's clock is %s %s AWS's: set it (timedatectl, chronyc)", skew.Abs(), where)
		}
		return "this machine's clock is wrong: set it (timedatectl, chronyc)"
	case CauseExpired:
		return "the credentials have expired: whoever provides them has to renew them"
	case CauseUnknownKey:
		return "AWS does not know this access key: it is deleted, or of another partition"
	case CauseInvalid:
		if api, ok := errors.AsType[smithy.APIError](err); ok && strings.Contains(api.ErrorCode(), "Signature") {
			return "the secret access key does not belong to the access key, or something on the way changes requests"
		}
	case CauseUntrusted:
		return "if a proxy answers in AWS's place, name the file of its CA in AWS_CA_BUNDLE"
	case CauseUnreachable:
		return "the way there has to be open: routes, a VPC endpoint, or HTTPS_PROXY"
	case CauseDenied, CauseOther:
	}
	return ""
}

package plugin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Configure hands over the settings of the Spec. It returns every problem that the backend has with them, or the one reason for which it could not be asked; nil if all is well.
func (p *Process) Configure(ctx context.Context) []*Error {
	settings := p.spec.Settings
	if len(settings) == 0 {
		settings = []byte("{}")
	}
	response, err := p.rpc.Configure(ctx, &backendv1.ConfigureRequest{Settings: settings, Provider: p.spec.Provider})
	if err != nil {
		return []*Error{p.callError(ctx, nil, "configure", err)}
	}
	const most = 100
	var problems []*Error
	for _, problem := range response.GetErrors()[:min(most, len(response.GetErrors()))] {
		e := p.backendError(problem)
		e.Kind = backendv1.Error_KIND_MISCONFIGURED
		problems = append(problems, e)
	}
	return problems
}

// GetCredentials asks for the credentials of one image; the request's deadline is set from ctx. An answer is returned only if it keeps the protocol's rules. The
// error is an *Error; what is returned beside one has the spans of the backend's work, if it told them, and whether it wants to be closed, and nothing else. What passes through it is kept out of the log
// and of errors.
func (p *Process) GetCredentials(ctx context.Context, request *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	call := p.output.begin()
	defer call.end()
	prepare(ctx, call, request)
	response, err := p.rpc.GetCredentials(ctx, request)
	if err != nil {
		return nil, p.callError(ctx, call, "answer", err)
	}
	return p.judge(call, response)
}

// ErrNothingToRenew is Renew's where the backend cannot renew an answer after all.
var ErrNothingToRenew = errors.New("the backend has nothing to renew")

// Renew asks for an answer in place of an earlier one that brought the request's lease; all else is as with GetCredentials. It must be asked only if Describe names
// backendv1.Feature_FEATURE_RENEW. The error is ErrNothingToRenew, which means that GetCredentials is to be asked, or an *Error.
func (p *Process) Renew(ctx context.Context, request *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
	call := p.output.begin()
	defer call.end()
	call.redactLease(request.GetLease())
	prepare(ctx, call, request.GetRequest())
	response, err := p.rpc.Renew(ctx, request)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil, ErrNothingToRenew
	case err != nil:
		return nil, p.callError(ctx, call, "renew an answer", err)
	}
	return p.judge(call, response)
}

// prepare makes a request ready to be sent.
func prepare(ctx context.Context, call *call, request *backendv1.GetCredentialsRequest) {
	if request == nil {
		return
	}
	call.redact(request.GetServiceAccountToken())
	if deadline, ok := ctx.Deadline(); ok {
		request.Deadline = timestamppb.New(deadline)
	}
}

// judge holds an answer against the protocol's rules, and keeps its secrets out of the log.
func (p *Process) judge(call *call, response *backendv1.GetCredentialsResponse) (*backendv1.GetCredentialsResponse, error) {
	if n := len(response.GetCredentials()); n <= backendv1.MaxCredentials {
		for _, c := range response.GetCredentials() {
			call.redact(login(c.GetUsername(), c.GetPassword())...)
		}
	}
	if len(response.GetLease()) <= backendv1.MaxLeaseBytes {
		call.redactLease(response.GetLease())
	}
	spans := p.spans(response.GetSpans())
	if why := p.fault(response); why != nil {
		return &backendv1.GetCredentialsResponse{Spans: spans, WantsClose: response.GetWantsClose()}, why
	}
	response.Spans = spans
	return response, nil
}

// fault is the failure that an answer reports, or the rule that it breaks.
func (p *Process) fault(response *backendv1.GetCredentialsResponse) *Error {
	credentials := response.GetCredentials()
	switch {
	case len(credentials) > backendv1.MaxCredentials:
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend's answer has %d credentials, at most %d are taken", len(credentials), backendv1.MaxCredentials)
	case response.GetError() != nil:
		return p.backendError(response.GetError())
	case len(response.GetLease()) > backendv1.MaxLeaseBytes:
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend's answer: lease has %d bytes, at most %d are taken", len(response.GetLease()), backendv1.MaxLeaseBytes)
	}
	for i, c := range credentials {
		if c.GetExpires() != nil && c.GetExpires().CheckValid() != nil {
			return errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend's answer: credentials[%d]: expires is no time", i)
		}
	}
	if d := response.GetCacheDuration(); d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend's answer: cache_duration is negative or no duration")
	}
	return nil
}

// spans are those that make sense, fit to be shown. They are for people alone, so a bad one spoils no answer.
func (p *Process) spans(all []*backendv1.Span) []*backendv1.Span {
	const longestName = 100
	var good []*backendv1.Span
	for _, span := range all[:min(backendv1.MaxSpans, len(all))] {
		// Redacted while it is whole, and only then cut.
		name := clean(p.text(span.GetName()), longestName)
		if name != "" && isLength(span.GetStart()) && isLength(span.GetTook()) {
			good = append(good, &backendv1.Span{Name: name, Start: span.GetStart(), Took: span.GetTook()})
		}
	}
	return good
}

// isLength says whether it is a length of time; none counts as zero.
func isLength(d *durationpb.Duration) bool {
	return d == nil || d.CheckValid() == nil && d.AsDuration() >= 0
}

// redactLease keeps a lease out of the log, in base64 too, since it may be any bytes. One of a few bytes hides nothing, and to mask it would only make the log unreadable.
func (c *call) redactLease(lease []byte) {
	if len(lease) < minPart {
		return
	}
	c.redact(string(lease), base64.RawStdEncoding.EncodeToString(lease), base64.RawURLEncoding.EncodeToString(lease))
}

// ErrNothingToRevoke is Revoke's where the backend cannot end what it lends after all.
var ErrNothingToRevoke = errors.New("the backend has nothing to revoke")

// Revoke has the backend end what the answer with this lease lent. It must be asked only if Describe names backendv1.Feature_FEATURE_REVOKE. The error is
// ErrNothingToRevoke or an *Error.
func (p *Process) Revoke(ctx context.Context, lease []byte) error {
	call := p.output.begin()
	defer call.end()
	call.redactLease(lease)
	response, err := p.rpc.Revoke(ctx, &backendv1.RevokeRequest{Lease: lease})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return ErrNothingToRevoke
	case err != nil:
		return p.callError(ctx, call, "revoke an answer", err)
	case response.GetError() != nil:
		return p.backendError(response.GetError())
	}
	return nil
}

// Close tells the backend that it is about to be stopped in good order, and returns when it has put away what it holds, or when ctx ends; Stop is still to be called.
// It should be asked only if Describe names backendv1.Feature_FEATURE_CLOSE, or an answer wants it; a backend that has nothing to close is no error. The error is an *Error.
func (p *Process) Close(ctx context.Context) error {
	response, err := p.rpc.Close(ctx, &backendv1.CloseRequest{})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case err != nil:
		return p.callError(ctx, nil, "close", err)
	case response.GetError() != nil:
		return p.backendError(response.GetError())
	}
	return nil
}

// WithTraceParent makes the calls of a Process that get this context tell the backend which trace they belong to: a `traceparent` as the W3C's Trace Context has it.
// Another value changes nothing.
func WithTraceParent(ctx context.Context, traceParent string) context.Context {
	if !backendv1.IsTraceParent(traceParent) {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, backendv1.TraceParentHeader, traceParent)
}

// ErrNothingToCheck is Check's where the backend has no check after all.
var ErrNothingToCheck = errors.New("the backend has nothing to check")

// Check asks the backend whether it could do its job now; the error says why not. It must be asked only if Describe names backendv1.Feature_FEATURE_CHECK. The
// error is ErrNothingToCheck or an *Error.
func (p *Process) Check(ctx context.Context, request *backendv1.CheckRequest) error {
	call := p.output.begin()
	defer call.end()
	call.redact(request.GetServiceAccountToken())
	response, err := p.rpc.Check(ctx, request)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return ErrNothingToCheck
	case err != nil:
		return p.callError(ctx, nil, "check itself", err)
	case response.GetError() != nil:
		return p.backendError(response.GetError())
	}
	return nil
}

// Describe asks what the backend is and can. It needs no Configure. The error is an *Error.
func (p *Process) Describe(ctx context.Context) (*backendv1.DescribeResponse, error) {
	response, err := p.rpc.Describe(ctx, &backendv1.DescribeRequest{})
	if err != nil {
		return nil, p.callError(ctx, nil, "describe itself", err)
	}
	response.Name, response.Version = clean(response.GetName(), 100), clean(response.GetVersion(), 100)
	return response, nil
}

// backendError is a failure that the backend reports, made fit for a message.
func (p *Process) backendError(e *backendv1.Error) *Error {
	kind := e.GetKind()
	switch kind {
	case backendv1.Error_KIND_REFUSED, backendv1.Error_KIND_MISCONFIGURED:
	default:
		kind = backendv1.Error_KIND_UNAVAILABLE
	}
	message := p.text(e.GetMessage())
	if message == "" {
		message = "the backend gives no reason"
	}
	return &Error{Kind: kind, Field: clean(e.GetField(), 200), Err: errors.New(message)}
}

// text is what a backend says, for a message: one bounded line without the secrets that are known.
func (p *Process) text(s string) string {
	cut := len(s) > maxErrorBytes
	// Cut first, so that little is searched, and cleaned last, since that changes what a secret looks like.
	said := clean(p.output.secrets.redact(s[:min(len(s), maxErrorBytes)], cut), maxErrorBytes)
	if cut && !strings.HasSuffix(said, "…") {
		said += "…"
	}
	return said
}

// callError says why a call did not come back with an answer. Mine is that call, nil for one that no secrets pass through.
func (p *Process) callError(ctx context.Context, mine *call, doing string, err error) *Error {
	s, _ := status.FromError(err)
	switch s.Code() { //nolint:exhaustive // the others say nothing about the backend's end
	case codes.DeadlineExceeded: // gRPC tells the backend the deadline, and its side may notice first
		awaitEnd(ctx, ownExitGrace)
	case codes.Unavailable, codes.Canceled: // the connection is gone, and so is the backend, or it will be in a moment
		if ctx.Err() == nil { // else it is the caller who has gone
			p.child.await(ownExitGrace)
		}
	}
	if ctx.Err() != nil {
		return TimeError(ctx, doing, p.lastWords(mine))
	}
	if why := p.reason(mine, doing); why != nil {
		return why
	}
	switch s.Code() {
	case codes.ResourceExhausted:
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend's answer is larger than %d bytes, or it says so: %s", backendv1.MaxMessageBytes, p.text(s.Message()))
	case codes.Unimplemented:
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend cannot %s: it does not serve version %d of the backend protocol: %s", doing, backendv1.ProtocolVersion, p.text(s.Message()))
	default:
		why := errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend broke when asked to %s: %s: %s", doing, s.Code(), p.text(s.Message()))
		why.Gone = p.gone()
		return why
	}
}

// gone says that there is nobody to ask any more. A backend may also say codes.Unavailable in its own words, over a connection that is as good as ever.
func (p *Process) gone() bool {
	select {
	case <-p.child.exited:
		return true
	default:
		return p.conns.broken()
	}
}

func awaitEnd(ctx context.Context, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// startError says why a backend could not be started.
func (p *Process) startError(ctx context.Context, err error) *Error {
	if ctx.Err() == nil {
		p.child.awaitOwnExit()
	}
	if why := p.reason(nil, "start"); why != nil {
		return why
	}
	inTime := ctx.Err() == nil
	p.child.kill()
	p.child.await(exitGrace)
	var marked *Error
	switch {
	case !inTime:
		return TimeError(ctx, "start", p.lastWords(nil))
	case errors.As(err, &marked):
		return marked
	case p.child.cmd == nil: // it never came to a process: the directory for its socket
		return systemError(fmt.Errorf("make the directory of the backend's socket: %w", err))
	case !p.child.hasGreeted():
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend closed its standard output without a go-plugin handshake: this is no backend%s", p.lastWords(nil))
	}
	return errorf(backendv1.Error_KIND_UNAVAILABLE, "connect to the backend: %s%s", p.text(err.Error()), p.lastWords(nil))
}

// reason is what is known of a backend that broke: why this side refused it, or how it ended.
func (p *Process) reason(mine *call, doing string) *Error {
	p.child.mu.Lock()
	refusal := p.child.refusal
	p.child.mu.Unlock()
	if why, ok := errors.AsType[*Error](refusal); ok {
		return why
	}
	if ended := p.child.ended(); ended != "" {
		before := "before it was ready"
		if doing != "start" {
			before = "when asked to " + doing
		}
		why := errorf(backendv1.Error_KIND_UNAVAILABLE, "the backend %s %s%s", ended, before, p.lastWords(mine))
		why.Gone = true
		return why
	}
	return nil
}

func (p *Process) lastWords(mine *call) string {
	words, withheld := p.output.lastWords(mine)
	switch {
	case words != "":
		return "; its last words: " + words
	case withheld:
		return "; what it printed is in the log"
	}
	return "; it printed nothing"
}

// TimeError is for a context that ended before the backend had done what it was asked.
func TimeError(ctx context.Context, doing, lastWords string) *Error {
	// The cause, because a start that several wait for is called off when the last one's time is over, and has no deadline of its own.
	if err := context.Cause(ctx); errors.Is(err, context.DeadlineExceeded) {
		return &Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Err: &because{fmt.Sprintf("the backend did not %s in time%s", doing, lastWords), err}}
	}
	return &Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Err: &because{fmt.Sprintf("given up before the backend could %s%s", doing, lastWords), ctx.Err()}}
}

// because is an error with a text of its own.
type because struct {
	text string
	err  error
}

func (b *because) Error() string { return b.text }
func (b *because) Unwrap() error { return b.err }

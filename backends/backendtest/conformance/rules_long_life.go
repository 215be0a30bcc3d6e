package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// longLifeRules are about what a broker that lives on may ask of a backend.
func longLifeRules() []Rule {
	return []Rule{
		{Name: "spans", Demand: "Each span of an answer has a name, and begins and ends within the call.", judge: judgeSpans},
		{Name: "renew", Demand: "Renew, where there is something to renew, keeps the rules for answers, also in another process than the one that gave the lease; a lease that it does not know is answered too.", judge: judgeRenew},
		{Name: "revoke", Demand: "Revoke, where there is something to revoke, answers for leases that it does not know and for one that it has revoked before; requests are then answered as ever.", judge: judgeRevoke},
	}
}

func judgeSpans(ctx context.Context, t *trial) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	for _, image := range t.images() {
		began := time.Now()
		response, err := p.get(ctx, image)
		if err != nil {
			return t.unless("odd-requests", p.broken("asked for credentials", err))
		}
		if err := checkSpans(response.GetSpans(), time.Since(began)); err != nil {
			return err
		}
	}
	return nil
}

func checkSpans(spans []*backendv1.Span, call time.Duration) error {
	const mend = "give each step a few words as its name, when it began since the call did, and how long it took; in Go: defer backends.Span(ctx, \"registry token\")()"
	const slack = 100 * time.Millisecond // of clocks
	for i, span := range spans {
		switch start, took := span.GetStart(), span.GetTook(); {
		case strings.TrimSpace(span.GetName()) == "":
			return fail(mend, "spans[%d] has no name", i)
		case !isLength(start) || !isLength(took):
			return fail(mend, "spans[%d], %q, begins or lasts less than no time, or its times are none", i, shorten(span.GetName()))
		case start.AsDuration() > call+slack || took.AsDuration() > call+slack || start.AsDuration()+took.AsDuration() > call+slack:
			return fail(mend, "spans[%d], %q, begins after %s and lasts %s, and the call took %s", i, shorten(span.GetName()), start.AsDuration(), took.AsDuration(), call.Round(time.Millisecond))
		}
	}
	return nil
}

func isLength(d *durationpb.Duration) bool {
	return d == nil || d.CheckValid() == nil && d.AsDuration() >= 0
}

// having gives a configured backend, if it names the feature.
func (t *trial) having(ctx context.Context, feature backendv1.Feature) (*process, error) {
	p, err := t.configured(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.mustHave(ctx, feature); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) mustHave(ctx context.Context, feature backendv1.Feature) error {
	about, err := p.describe(ctx)
	if err != nil {
		return p.trial.unless("describe", p.broken("asked to describe itself", err))
	}
	if !slices.Contains(about.GetFeatures(), feature) {
		return notRun("the backend does not name " + feature.String())
	}
	return nil
}

// lease is one to try.
type lease struct {
	what  string
	bytes []byte
}

// unknownLeases are some that no backend has given.
func unknownLeases() []lease {
	return []lease{
		{"no lease", nil},
		{"a lease of another backend", []byte("conformance/unknown/lease")},
		{"a lease that is no text", []byte{0xff, 0, '\n', 0xfe}},
		{"a lease that looks like a path", []byte("../../etc/passwd")},
		{"a lease that is JSON", []byte(`{"id":[null]}`)},
		{"a lease of 16 KiB", make([]byte, backendv1.MaxLeaseBytes)},
	}
}

func (p *process) renew(ctx context.Context, image string, lease []byte) (*backendv1.GetCredentialsResponse, error) {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	response, err := p.rpc.Renew(ctx, &backendv1.RenewRequest{Request: p.trial.due(ctx, p.trial.request(image)), Lease: lease})
	p.trial.remember(response)
	return response, err
}

func (p *process) revoke(ctx context.Context, lease []byte) (*backendv1.Error, error) {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	response, err := p.rpc.Revoke(ctx, &backendv1.RevokeRequest{Lease: lease})
	return response.GetError(), err
}

// leaseOf asks for an answer, and gives its lease; empty if there is none, with the reason noted.
func (p *process) leaseOf(ctx context.Context, image string) ([]byte, error) {
	response, err := p.get(ctx, image)
	switch {
	case err != nil:
		return nil, p.broken("asked for credentials", err)
	case len(response.GetLease()) == 0:
		p.trial.note("its answer for %s has no lease, so that only leases that it does not know were tried", image)
	}
	return response.GetLease(), nil
}

func judgeRenew(ctx context.Context, t *trial) error {
	p, err := t.having(ctx, backendv1.Feature_FEATURE_RENEW)
	if err != nil {
		return err
	}
	image := t.images()[0]
	for _, unknown := range unknownLeases() {
		response, err := p.renew(ctx, image, unknown.bytes)
		switch {
		case status.Code(err) == codes.Unimplemented:
			return notRun("the backend answers UNIMPLEMENTED: it has nothing to renew")
		case err != nil:
			return p.broken("asked to renew "+unknown.what, err)
		}
		if err := t.checkRenewal(response, "asked to renew "+unknown.what, image); err != nil {
			return err
		}
	}
	lease, err := p.leaseOf(ctx, image)
	if err != nil || len(lease) == 0 {
		return err
	}
	another, err := t.configured(ctx)
	if err != nil {
		return err
	}
	for _, one := range []struct {
		what string
		*process
	}{{"asked to renew its own answer", p}, {"asked to renew an answer of another process", another}} {
		response, err := one.renew(ctx, image, lease)
		switch {
		case status.Code(err) == codes.Unimplemented: // for this one
			continue
		case err != nil:
			return one.broken(one.what, err)
		}
		if err := t.checkRenewal(response, one.what, image); err != nil {
			return err
		}
		switch {
		case response.GetError() != nil:
			t.note("%s, it answers with an error (%s): the broker then asks anew", one.what, describe(response.GetError()))
		case len(response.GetCredentials()) == 0:
			return fail("where a lease cannot be renewed, answer as GetCredentials would", "%s, it gives no credentials, and no error", one.what)
		}
	}
	return p.stillAnswers(ctx, "after renewals")
}

// checkRenewal demands of an answer to Renew what several rules demand of one to GetCredentials.
func (t *trial) checkRenewal(r *backendv1.GetCredentialsResponse, when, image string) error {
	if e := r.GetError(); e != nil {
		return checkReason(e, when)
	}
	for _, check := range []struct {
		rule string
		err  error
	}{{"keys", checkKeys(r, image)}, {"expiry", checkExpiry(r, time.Now())}, {"size", checkSize(r)}} {
		if broken, ok := errors.AsType[*failure](check.err); ok {
			return t.unless(check.rule, &failure{when + ": " + broken.seen, broken.mend})
		}
	}
	return nil
}

// checkReason demands that an error says something.
func checkReason(e *backendv1.Error, when string) error {
	if strings.TrimSpace(e.GetMessage()) == "" {
		return fail("say in one line what was being done, to what, and what to try", "%s, it fails and gives no reason (%s)", when, e.GetKind())
	}
	return nil
}

func judgeRevoke(ctx context.Context, t *trial) error {
	p, err := t.having(ctx, backendv1.Feature_FEATURE_REVOKE)
	if err != nil {
		return err
	}
	for _, unknown := range unknownLeases() {
		failure, err := p.revoke(ctx, unknown.bytes)
		switch {
		case status.Code(err) == codes.Unimplemented:
			return notRun("the backend answers UNIMPLEMENTED: it has nothing to revoke")
		case err != nil:
			return p.broken("asked to revoke "+unknown.what, err)
		case failure != nil:
			if err := checkReason(failure, "asked to revoke "+unknown.what); err != nil {
				return err
			}
		}
	}
	lease, err := p.leaseOf(ctx, t.images()[0])
	if err != nil {
		return err
	}
	for i := 0; i < 2 && len(lease) > 0; i++ {
		what := []string{"asked to revoke an answer", "asked to revoke an answer that it has revoked"}[i]
		failure, err := p.revoke(ctx, lease)
		switch {
		case err != nil:
			return p.broken(what, err)
		case failure == nil:
			continue
		case i == 1:
			return fail("revoking what has ended is a success: it is what was wanted", "%s, it fails: %s", what, describe(failure))
		}
		if err := checkReason(failure, what); err != nil {
			return err
		}
		t.note("%s, it fails: %s", what, describe(failure))
		break
	}
	return p.stillAnswers(ctx, "after something has been revoked")
}

func judgeClose(ctx context.Context, t *trial) error {
	if err := t.needs("host-gone"); err != nil {
		return err
	}
	const mend = "answer Close, or leave wants_close away; in Go it is there where the Backend is a Closer, and only there"
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	answer, err := p.get(ctx, t.images()[0])
	if err != nil {
		return p.broken("asked for credentials", err)
	}
	if err := p.mustHave(ctx, backendv1.Feature_FEATURE_CLOSE); err != nil {
		if _, none := errors.AsType[notRun](err); none && answer.GetWantsClose() {
			return fail(mend, "its answer says wants_close, and it does not name %s", backendv1.Feature_FEATURE_CLOSE)
		}
		return err
	}
	p.family.look()
	closing, cancel := context.WithTimeout(ctx, min(t.options.Timeout, backendv1.CloseTimeout))
	defer cancel()
	began := time.Now()
	response, err := p.rpc.Close(closing, &backendv1.CloseRequest{})
	took := time.Since(began)
	switch {
	case status.Code(err) == codes.Unimplemented && answer.GetWantsClose():
		return fail(mend, "its answer says wants_close, and closed it answers UNIMPLEMENTED")
	case status.Code(err) == codes.Unimplemented:
		return notRun("the backend answers UNIMPLEMENTED: it has nothing to close")
	case err != nil:
		return p.broken("closed", err)
	case answer.GetWantsClose() && took > backendv1.ShortCloseTimeout:
		return fail("be done within a second: the pull waits, and the process is killed then", "its answer says wants_close, and closed it took %s", took.Round(time.Millisecond))
	case response.GetError() != nil:
		if err := checkReason(response.GetError(), "closed"); err != nil {
			return err
		}
		t.note("closed, it says: %s", describe(response.GetError()))
	}
	p.hangUp()
	if !within(ctx, atMost, func() bool { return closed(p.exited) }) {
		return fail(mendDeath, "closed, it still ran a second after its standard input had ended")
	}
	return p.family.gone(ctx, "after it had been closed", func() bool { return closed(p.drained) })
}

// remember has what must not be reported of an answer looked for.
func (t *trial) remember(response *backendv1.GetCredentialsResponse) {
	for i, c := range response.GetCredentials() {
		t.secrets.addLogin(i, c.GetKey(), c.GetUsername(), c.GetPassword())
	}
	t.secrets.add("the lease of an answer", string(response.GetLease()))
}

// fromLongLife renews and revokes with leases that must not come out again, and closes.
func (l *leaks) fromLongLife(ctx context.Context) error {
	t := l.trial
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	about, err := p.describe(ctx)
	if err != nil {
		return nil
	}
	may := func(feature backendv1.Feature, rule string) bool {
		return slices.Contains(about.GetFeatures(), feature) && !t.failed[rule]
	}
	image := t.images()[0]
	response, err := p.get(ctx, image)
	l.lookAtError("an image that it serves", response.GetError(), err)
	leases := []lease{{"an unknown lease", []byte(l.canary("an unknown lease"))}}
	if len(response.GetLease()) > 0 {
		leases = append(leases, lease{"a lease", response.GetLease()})
	}
	for _, one := range leases {
		if may(backendv1.Feature_FEATURE_RENEW, "renew") {
			response, err := p.renew(ctx, image, one.bytes)
			l.lookAtError("the renewal of "+one.what, response.GetError(), err)
			l.lookAtSpans("the renewal of "+one.what, response)
		}
		if may(backendv1.Feature_FEATURE_REVOKE, "revoke") {
			failure, err := p.revoke(ctx, one.bytes)
			l.lookAtError("the revocation of "+one.what, failure, err)
		}
	}
	if may(backendv1.Feature_FEATURE_CLOSE, "close") {
		ctx, cancel := t.call(ctx)
		defer cancel()
		response, err := p.rpc.Close(ctx, &backendv1.CloseRequest{})
		l.lookAtError("Close", response.GetError(), err)
	}
	return nil
}

func (l *leaks) lookAtSpans(where string, response *backendv1.GetCredentialsResponse) {
	for i, span := range response.GetSpans() {
		l.look(fmt.Sprintf("the name of spans[%d] for %s", i, where), []byte(span.GetName()))
	}
}

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func loadRules() []Rule {
	return []Rule{
		{Name: "concurrency", Demand: "64 requests at once are all answered, each as it would be alone.", judge: concurrency},
		{Name: "cancellation", Demand: "A call that the broker gives up leaves nothing running, and later calls are answered as ever.", judge: cancellation},
		{Name: "deadline", Demand: "A call whose deadline passes leaves nothing running, and later calls are answered as ever.", judge: deadline},
		{Name: "leaks", Demand: "Requests leave neither open files nor processes behind.", judge: judgeLeaks},
	}
}

func concurrency(ctx context.Context, t *trial) error {
	const requests = 64
	images := t.images()
	if len(images) == 1 {
		t.note("asked only for an image that it does not serve: give an Image")
	}
	for _, image := range images {
		if _, err := t.answerFor(ctx, image); err != nil {
			return err
		}
	}
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	const mend = "Credentials is called from many goroutines at once: guard what they share, and keep nothing of one request where another finds it"
	errs := make([]error, requests)
	broken := make([]error, requests)
	var waiting sync.WaitGroup
	for i := range requests {
		image := images[i%len(images)]
		waiting.Go(func() {
			response, err := p.get(ctx, image)
			if err != nil {
				broken[i] = err
			} else if how := t.answers[image].differs(response); how != "" {
				errs[i] = fail(mend, "with 64 requests at once it gives %s %s", image, how)
			}
		})
	}
	waiting.Wait()
	for i := range requests {
		if broken[i] != nil {
			return p.broken("asked 64 times at once", broken[i])
		}
		if errs[i] != nil {
			return errs[i]
		}
	}
	return nil
}

// abandon sends calls that are given up at different moments, and looks at what is left.
func (t *trial) abandon(ctx context.Context, what string, giveUp func(context.Context, time.Duration) (context.Context, context.CancelFunc)) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	if err := p.stillAnswers(ctx, "when it has just been started"); err != nil {
		return err
	}
	idle := p.family.size()
	const calls = 16
	var waiting sync.WaitGroup
	for i := range calls {
		image := t.images()[i%len(t.images())]
		waiting.Go(func() {
			ctx, cancel := giveUp(ctx, time.Duration(i)*3*time.Millisecond)
			defer cancel()
			request := t.request(image)
			if deadline, ok := ctx.Deadline(); ok {
				request.Deadline = timestamppb.New(deadline)
			}
			response, _ := p.rpc.GetCredentials(ctx, request)
			t.remember(response)
		})
	}
	waiting.Wait()
	const mend = "stop what was started for a call when its context ends, locks and processes included; in Go: hand ctx on to everything that waits"
	if closed(p.exited) {
		return fail(mend, "it %s after calls %s%s", p.ended(), what, p.lastWords())
	}
	const soon = 2 * time.Second
	left := 0
	if !within(ctx, soon, func() bool { left = p.family.size(); return left <= idle }) {
		return fail(mend, "%d processes that it started for calls %s are still there %s later", left-idle, what, soon)
	}
	if err := p.stillAnswers(ctx, "after calls "+what); err != nil {
		if f, ok := errors.AsType[*failure](err); ok {
			f.mend = mend
		}
		return err
	}
	return nil
}

func cancellation(ctx context.Context, t *trial) error {
	return t.abandon(ctx, "that were cancelled", func(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		ctx = withoutDeadline{ctx} // a broker that has given up cancels, and does not wait for a deadline
		timer := time.AfterFunc(after, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	})
}

// withoutDeadline hides the deadline of a context from gRPC.
type withoutDeadline struct{ context.Context }

func (withoutDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }

func deadline(ctx context.Context, t *trial) error {
	return t.abandon(ctx, "whose deadline passed", func(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, after+time.Millisecond)
	})
}

func judgeLeaks(ctx context.Context, t *trial) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	const some, tolerated = 48, 8
	if err := p.askMany(ctx, some); err != nil {
		return err
	}
	files, err := descriptors(p.cmd.Process.Pid)
	if err != nil {
		return notRun(fmt.Sprintf("its open files cannot be counted: %v: try as root", err))
	}
	children := p.family.size()
	if err := p.askMany(ctx, 2*some); err != nil {
		return err
	}
	var moreFiles, moreChildren int
	settled := within(ctx, 2*time.Second, func() bool {
		now, err := descriptors(p.cmd.Process.Pid)
		moreFiles, moreChildren = now-files, p.family.size()-children
		return err == nil && moreFiles <= tolerated && moreChildren <= tolerated
	})
	switch {
	case settled:
		return nil
	case moreFiles > tolerated:
		return fail("close what a request opens, response bodies and idle connections included", "%d requests left %d open files behind", 2*some, moreFiles)
	default:
		return fail("wait for every process that a request starts", "%d requests left %d processes behind", 2*some, moreChildren)
	}
}

// askMany asks that many times, a few at once.
func (p *process) askMany(ctx context.Context, times int) error {
	const atOnce = 8
	errs := make([]error, atOnce)
	var waiting sync.WaitGroup
	for i := range atOnce {
		waiting.Go(func() {
			for range times / atOnce {
				for _, image := range p.trial.images()[:1] {
					if _, err := p.get(ctx, image); err != nil {
						errs[i] = err
						return
					}
				}
			}
		})
	}
	waiting.Wait()
	for _, err := range errs {
		if err != nil {
			return p.broken("asked a few times at once", err)
		}
	}
	return nil
}

// load keeps requests in flight until it is stopped. After one that fails, the next has to wait a little.
func load(ctx context.Context, requests []*backendv1.GetCredentialsRequest, get func(context.Context, *backendv1.GetCredentialsRequest) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	const atOnce = 8
	var waiting sync.WaitGroup
	for i := range atOnce {
		waiting.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				if get(ctx, requests[n%len(requests)]) == nil {
					continue
				}
				pause := time.NewTimer(5 * time.Millisecond)
				select {
				case <-ctx.Done():
				case <-pause.C:
				}
				pause.Stop()
			}
		})
	}
	return func() {
		cancel()
		waiting.Wait()
	}
}

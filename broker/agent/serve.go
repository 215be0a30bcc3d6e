package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent/cache"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/peer"
)

const (
	// readTimeout bounds how long an asker may take to say what it wants. The exec plugin has the request in hand before it connects.
	readTimeout = 10 * time.Second
	// writeTimeout bounds how long an asker may take to read its answer.
	writeTimeout = 10 * time.Second
	// workingInterval is how often an asker hears that its request is worked on. It takes two seconds of silence for a hung agent.
	workingInterval = 400 * time.Millisecond
)

// serve answers one connection: one request, one reply.
func (a *Agent) serve(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	uid, known, err := peer.UID(conn)
	if err != nil || known && uid != a.uid {
		a.Logger().Warn("somebody else's request was not heard", "uid", uid, "want", a.uid)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(readTimeout))
	request, problem, err := readRequest(conn)
	if err != nil {
		return // it has gone, or never said anything
	}
	out := &replier{conn: conn}
	if problem != "" {
		out.reply(fast.Reply{Unserved: problem})
		a.observe(Observation{Outcome: OutcomeUnserved})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var background sync.WaitGroup
	defer background.Wait()
	stop := make(chan struct{})
	defer close(stop)
	background.Go(func() { out.keepWorking(stop) })
	// Who hangs up has been killed, or has lost patience: nobody needs the answer any more. The reading ends with the connection.
	_ = conn.SetReadDeadline(time.Time{})
	background.Go(func() {
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	out.reply(a.do(ctx, request))
	_ = conn.SetReadDeadline(time.Unix(1, 0))
}

func readRequest(conn io.Reader) (r fast.Request, problem string, err error) {
	var head [fast.HeaderSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return r, "", err
	}
	header, problem := fast.ParseHeader(head[:])
	if problem != "" {
		return r, problem, nil
	}
	payload := make([]byte, header.Length)
	if _, err := io.ReadFull(conn, payload); err != nil {
		return r, "", err
	}
	r, problem = fast.DecodeRequest(header, payload)
	return r, problem, nil
}

// replier writes whole frames.
type replier struct {
	conn *net.UnixConn
	mu   sync.Mutex
	done bool
}

func (r *replier) reply(reply fast.Reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = true
	frame := fast.AppendReply(nil, reply)
	_ = r.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = r.conn.Write(frame) // who has gone does the work itself, or was killed
	clear(frame)
	clear(reply.Stdout)
}

// keepWorking says every now and then that the request is worked on.
func (r *replier) keepWorking(stop <-chan struct{}) {
	tick := time.NewTicker(workingInterval)
	defer tick.Stop()
	frame := fast.AppendWorking(nil)
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		r.mu.Lock()
		if !r.done {
			_ = r.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			_, _ = r.conn.Write(frame)
		}
		r.mu.Unlock()
	}
}

func (a *Agent) do(ctx context.Context, r fast.Request) fast.Reply {
	if r.Operation == fast.Resolve || r.Operation == fast.Get { // who only looks, a watchdog above all, keeps nobody up
		a.inFlight.Add(1)
		defer a.inFlight.Add(-1)
		a.lastAsked.Store(a.Now().UnixNano())
		defer func() { a.lastAsked.Store(a.Now().UnixNano()) }()
	}
	switch r.Operation {
	case fast.Resolve:
		a.served.Add(1)
		return a.resolve(ctx, r)
	case fast.Get:
		return a.get(ctx, r)
	case fast.Status:
		a.Refresh(ctx) // what has just been written counts
		return a.statusReply(maxStatus)
	case fast.Ping:
		a.Refresh(ctx) // as with Status
		return fast.Reply{}
	case fast.Forget:
		return a.jsonReply(a.forget(r))
	default: // DecodeRequest lets no other pass
		return fast.Reply{Unserved: fmt.Sprintf("operation %d is not known here", r.Operation)}
	}
}

// maxStatus is what a frame can hold, less its fields' heads, in bytes.
const maxStatus = fast.MaxFrame - 64

// statusReply is the status, with as many of the answers as there is room for.
func (a *Agent) statusReply(room int) fast.Reply {
	for status := a.Status(); ; {
		reply := a.jsonReply(status, nil)
		if len(reply.Stdout) <= room || !status.shorten() {
			return reply
		}
	}
}

func (a *Agent) jsonReply(v any, err error) fast.Reply {
	var data []byte
	if err == nil {
		data, err = json.Marshal(v)
	}
	if err != nil {
		return a.failed(err)
	}
	return fast.Reply{Stdout: data}
}

// failed is what the exec plugin would print, and how it would end.
func (a *Agent) failed(err error) fast.Reply { return fast.Reply{Status: 1, Stderr: a.Complain(err)} }

func (a *Agent) observe(o Observation) {
	if a.Observe != nil {
		a.Observe(o)
	}
}

// resolve answers the kubelet's request as the exec plugin would.
func (a *Agent) resolve(ctx context.Context, r fast.Request) fast.Reply {
	began := a.Now()
	observed := Observation{Outcome: broker.OutcomeInvalid}
	defer func() {
		observed.Took = a.Now().Sub(began)
		a.observe(observed)
	}()
	s, l, err := a.sets.use(ctx, place{r.Config, r.BackendDir})
	if err != nil { // the configuration is broken, and always was
		observed.Outcome = broker.OutcomeFailed
		return a.failed(err)
	}
	defer l.release()
	observed.Configuration = s.label()
	response, err := kubelet.Answer(ctx, r.Body, func(ctx context.Context, request broker.Request) (broker.Result, error) {
		b, end := a.brokerFor(s, l, r), func(broker.Result, error) {}
		if a.Trace != nil {
			ctx, end = a.Trace.Request(ctx, request, audienceOf(r))
			b.Caller = tracedCaller{b.Caller, a.Trace}
		}
		result, err := b.Resolve(ctx, request)
		end(result, err)
		observed.Outcome, observed.Slots = result.Outcome(err), result.Slots
		return result, err
	})
	if err != nil {
		return a.failed(err)
	}
	return fast.Reply{Stdout: response}
}

// audienceOf is what a request's providers are restricted to; nil: nothing.
func audienceOf(r fast.Request) *string {
	if !r.HasAudience {
		return nil
	}
	return &r.Audience
}

// brokerFor is the broker for one request.
func (a *Agent) brokerFor(s *set, l *loaded, r fast.Request) *broker.Broker {
	audience := audienceOf(r)
	providers := l.cfg.ForAudience(audience)
	if audience != nil && len(providers) == 0 {
		s.log.Warn(config.NobodyOf(*audience))
	}
	return broker.New(l.cfg, providers, l.kept.cache, s.log)
}

// GetRequest is the body of a fast.Get.
type GetRequest struct {
	// Request is a CredentialProviderRequest.
	Request json.RawMessage `json:"request"`
	// ShowSecrets: with passwords.
	ShowSecrets bool `json:"showSecrets"`
}

// get resolves a request for a person.
func (a *Agent) get(ctx context.Context, r fast.Request) fast.Reply {
	var body GetRequest
	if json.Unmarshal(r.Body, &body) != nil {
		return a.failed(errors.New("the agent was asked in words that it does not know"))
	}
	request, _, err := kubelet.ReadRequest(body.Request)
	if err != nil {
		return a.failed(err)
	}
	s, l, err := a.sets.use(ctx, place{r.Config, r.BackendDir})
	if err != nil {
		return a.failed(err)
	}
	defer l.release()
	result, failure := a.brokerFor(s, l, r).Resolve(ctx, request)
	shown, err := a.Describe(request, result, failure, body.ShowSecrets)
	if err != nil {
		return a.failed(err)
	}
	return fast.Reply{Stdout: shown}
}

// ForgetRequest is the body of a fast.Forget: what to forget. One of the three is set.
type ForgetRequest struct {
	Image    string `json:"image,omitempty"`
	Provider string `json:"provider,omitempty"`
	All      bool   `json:"all,omitempty"`
}

// Forgotten is the reply to a ForgetRequest.
type Forgotten struct {
	// Answers is how many were dropped, Failures how many remembered failures.
	Answers  int `json:"answers"`
	Failures int `json:"failures"`
}

func (a *Agent) forget(r fast.Request) (Forgotten, error) {
	var body ForgetRequest
	if json.Unmarshal(r.Body, &body) != nil {
		return Forgotten{}, errors.New("the agent was asked in words that it does not know")
	}
	var forgotten Forgotten
	var names []string
	for _, s := range a.sets.snapshot() {
		l := s.loaded.Load()
		if l == nil || !l.kept.acquire() {
			continue
		}
		matches := matching(body, l.cfg)
		answers, failures := l.kept.cache.Forget(matches.answer)
		forgotten.Answers += answers
		forgotten.Failures += failures
		// A backend may have a memory of its own, as that for ECR has.
		l.kept.backends.Replace(matches.provider)
		for _, p := range l.cfg.Providers {
			names = append(names, p.Name)
		}
		l.release()
	}
	if body.Provider != "" && !slices.Contains(names, body.Provider) {
		slices.Sort(names)
		return Forgotten{}, fmt.Errorf("there is no provider %q: there are %s", body.Provider, strings.Join(slices.Compact(names), ", "))
	}
	a.Logger().Info("answers were forgotten", "answers", forgotten.Answers, "failures", forgotten.Failures, "image", body.Image, "provider", body.Provider, "all", body.All)
	return forgotten, nil
}

// matches are what a request to forget is about.
type matches struct {
	provider func(*config.Provider) bool
	answer   func(cache.Held) bool
}

// matching says what a request to forget is about. An image means whatever could be answered for it, be it filed under its registry or its mirror.
func matching(body ForgetRequest, cfg *config.Config) matches {
	switch {
	case body.All:
		return matches{func(*config.Provider) bool { return true }, func(cache.Held) bool { return true }}
	case body.Provider != "":
		return matches{func(p *config.Provider) bool { return p.Name == body.Provider }, func(h cache.Held) bool { return h.Provider == body.Provider }}
	}
	askedFor := map[string]string{} // by provider
	if body.Image != "" {
		for _, d := range broker.Route(cfg.Providers, broker.Request{Image: body.Image}).Decisions {
			if d.Asked || d.PassedOver != "" {
				askedFor[d.Provider.Name] = d.Image
			}
		}
	}
	return matches{
		func(p *config.Provider) bool { return askedFor[p.Name] != "" },
		func(h cache.Held) bool {
			asked, ok := askedFor[h.Provider]
			return ok && (h.Name == asked || h.Scope == cache.ScopeRegistry && h.Name == image.Registry(asked))
		},
	}
}

package conformance

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func secretsRules() []Rule {
	return []Rule{{Name: "secrets", Demand: "No token, password, lease or secret is in what the backend prints or reports, nor in the arguments of what it starts.", judge: judgeSecrets}}
}

// judgeSecrets sends secrets wherever secrets can be sent, gives every reason for an error, and looks at all that comes back besides the credentials.
func judgeSecrets(ctx context.Context, t *trial) error {
	found := &leaks{trial: t}
	if err := found.fromSettings(ctx); err != nil {
		return err
	}
	if !t.failed["settings"] {
		if err := errors.Join(found.fromRequests(ctx), found.fromLongLife(ctx)); err != nil {
			return err
		}
	}
	// Whatever is printed late is printed by the end.
	for _, p := range t.processes {
		p.finish()
		within(ctx, exitGrace, func() bool { return closed(p.drained) })
		for _, stream := range []string{"standard output", "standard error"} {
			found.look(stream, p.output.copyOf(stream))
		}
	}
	for _, what := range t.secrets.tooShort() {
		t.note("%s has fewer than %d characters, too few to look for: try with a longer one", what, minSecret)
	}
	if found.what == "" {
		return nil
	}
	return fail("never print or report a value that came from settings, a token or an answer; in Go, keep them in backends.Secret, and settings too", "%s is in %s", found.what, found.where)
}

// leaks remembers the first secret that was found where it should not be.
type leaks struct {
	trial       *trial
	mu          sync.Mutex
	what, where string
}

func (l *leaks) look(where string, text []byte) {
	what := l.trial.secrets.find(text)
	l.mu.Lock()
	defer l.mu.Unlock()
	if what != "" && l.what == "" {
		l.what, l.where = what, where
	}
}

func (l *leaks) lookAtError(where string, e *backendv1.Error, err error) {
	l.look("the error for "+where, []byte(e.GetMessage()+"\n"+e.GetField()))
	if err != nil {
		l.look("the gRPC status for "+where, []byte(status.Convert(err).Message()))
	}
}

// canary is a secret that is found again.
func (l *leaks) canary(what string) string {
	value := "canary" + rand.Text()
	l.trial.secrets.add(what, value)
	return value
}

// fromSettings plants secrets in settings that are refused: the error names the field, and never quotes its value.
func (l *leaks) fromSettings(ctx context.Context) error {
	t := l.trial
	value := func(what string) json.RawMessage { return mustJSON(l.canary(what)) }
	bad := map[string][]byte{
		"a field it does not know":      t.with(unknown, value("the value of an unknown field")),
		"a list as its settings":        fmt.Appendf(nil, "[%s]", value("a value in settings that are a list")),
		"a string as its settings":      value("settings that are a string"),
		"settings that break off":       fmt.Appendf(nil, `{"password":%s`, value("a value in settings that break off")),
		"settings that are no JSON":     fmt.Appendf(nil, `{"password":%s}}`, value("a value in settings that are no JSON")),
		"an object within its settings": t.with(unknown, fmt.Appendf(nil, `{"password":%s}`, value("a value within an unknown field"))),
	}
	for field, raw := range t.fields {
		if jsonType(raw) != "a string" {
			bad[fmt.Sprintf("a string in the field %q", field)] = t.with(field, value("a value of the wrong type"))
			continue
		}
		bad[fmt.Sprintf("a list in the field %q", field)] = t.with(field, fmt.Appendf(nil, `[%s]`, value("a value in a list that should be a string")))
	}
	for what, settings := range bad {
		p, err := t.start(ctx, launch{})
		if err != nil {
			return err
		}
		problems, err := p.configure(ctx, settings)
		l.lookAtError(what, nil, err)
		for _, problem := range problems {
			l.lookAtError(what, problem, nil)
		}
		p.finish()
	}
	return nil
}

// fromRequests asks for what there is and for what there is not, with a token.
func (l *leaks) fromRequests(ctx context.Context) error {
	t := l.trial
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	stop := l.watchArguments(p)
	defer stop()
	token := strings.Join([]string{l.canary("the head of the token"), l.canary("the claims of the token"), l.canary("the signature of the token")}, ".")
	requests := append(t.oddRequests(),
		oddRequest{"an image that it serves", t.request(t.image())},
		oddRequest{"an image that it does not serve", t.request(t.options.OtherImage)},
		oddRequest{"an image and a token", &backendv1.GetCredentialsRequest{Image: t.image(), ServiceAccountToken: &token, ServiceAccountAnnotations: t.options.Annotations}},
		oddRequest{"an image that it does not serve, and a token", &backendv1.GetCredentialsRequest{Image: t.options.OtherImage, ServiceAccountToken: &token, ServiceAccountAnnotations: t.options.Annotations}},
	)
	for _, r := range requests {
		response, err := p.ask(ctx, r.request)
		l.lookAtError(r.what, response.GetError(), err)
		l.lookAtSpans(r.what, response)
		if !t.failed["check"] { // where Check does not exist, that is what it answers
			ctx, cancel := t.call(ctx)
			checked, err := p.rpc.Check(ctx, &backendv1.CheckRequest{
				Image: r.request.GetImage(), ServiceAccountToken: r.request.ServiceAccountToken, ServiceAccountAnnotations: r.request.GetServiceAccountAnnotations(),
			})
			cancel()
			l.lookAtError("a check with "+r.what, checked.GetError(), err)
		}
		if closed(p.exited) {
			if p, err = t.configured(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// watchArguments looks at the command lines of what the backend starts, for as long as it is asked things.
func (l *leaks) watchArguments(p *process) (stop func()) {
	if !seesFamilies {
		l.trial.note("the arguments of what it starts are looked at on Linux only")
		return func() {}
	}
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			l.look("the arguments of a process, which everybody on the machine can read", p.family.arguments())
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(done)
		waiting.Wait()
	}
}

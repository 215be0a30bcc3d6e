package webidentity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// world is what a source asks of the world, apart from the network.
type world struct {
	env  func(name string) string
	now  func() time.Time
	wait func(ctx context.Context, d time.Duration) (waited bool) // false: ctx ended before
}

func realWorld() world {
	return world{env: os.Getenv, now: time.Now, wait: func(ctx context.Context, d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}}
}

func newSource(c Config, defaultAudience string, from Sources, w world) (Source, error) {
	setting := cmp.Or(from.At, defaultSetting)
	if chosen := c.chosen(); len(chosen) != 1 {
		return nil, backends.InvalidConfig(setting, "want exactly one source of tokens, got %d: %s", len(chosen), strings.Join(chosen, ", "))
	}
	j := judge{audience: cmp.Or(c.Audience, defaultAudience), field: setting, setting: setting + ".audience", elsewhere: anotherSource, now: w.now}
	switch {
	case c.File != nil:
		return &file{File: *c.File, judge: j.of("file.path")}, nil
	case c.GoogleMetadata != nil:
		return newGoogle(*c.GoogleMetadata, j.of("googleMetadata"), w), nil
	case c.AzureManagedIdentity != nil:
		return newAzure(*c.AzureManagedIdentity, j.of("azureManagedIdentity"), w), nil
	case c.SPIFFE != nil:
		return &spiffe{SPIFFE: *c.SPIFFE, judge: j.of("spiffe"), env: w.env}, nil
	case c.Executable != nil:
		return newExecutable(*c.Executable, j.of("executable")), nil
	case c.AWS != nil && from.AWS == nil:
		return nil, backends.InvalidConfig(setting+".aws", "this backend does not take it: %s", from.InsteadOfAWS)
	case c.AWS != nil:
		return &judged{from: from.AWS(c.AWS.withDefaults(), j.audience), judge: j.of("aws")}, nil
	default:
		return newURL(*c.URL, j.of("url"), w), nil
	}
}

// judged is a source that a backend has brought.
type judged struct {
	from  Source
	judge judge
}

func (s *judged) String() string { return s.from.String() }

// Token asks the source. What it says of its settings is put where they are.
func (s *judged) Token(ctx context.Context) (Token, error) {
	t, err := s.from.Token(ctx)
	if err == nil {
		return s.judge.token(string(t.Value), s.String())
	}
	var e *backends.Error
	switch {
	case !errors.As(err, &e):
		return Token{}, problem(backends.Unavailable, s.String(), "%w", err)
	case e.Kind == backends.KindMisconfigured:
		return Token{}, s.judge.misconfigured(e.Field, s.String(), "%w", e.Err)
	case e.Kind == backends.KindRefused:
		return Token{}, problem(backends.Refused, s.String(), "%w", e.Err)
	default:
		return Token{}, problem(backends.Unavailable, s.String(), "%w", e.Err)
	}
}

// judge decides whether what a source gave is a token to go on with. It saves the cloud's refusal, which says less.
type judge struct {
	audience  string
	field     string // of the source
	setting   string // that says the audience
	elsewhere string // what to do on a machine that is not in the source's cloud
	now       func() time.Time
}

// anotherSource is what to do on such a machine where there are other sources to choose from.
const anotherSource = "use another source"

// otherwise is the same for where the machine may well be in that cloud: only what is not obvious is worth saying then.
func (j judge) otherwise() string {
	if j.elsewhere == anotherSource {
		return ""
	}
	return " If not, " + j.elsewhere
}

// of is the judge of the source that this field sets.
func (j judge) of(field string) judge {
	j.field += "." + field
	return j
}

// token takes what a source gave, space around it aside. what is the source's name.
func (j judge) token(raw, what string) (Token, error) {
	value := strings.TrimSpace(raw)
	if value == "" {
		return Token{}, backends.Unavailable(fmt.Errorf("identity token from %s: it is empty", what))
	}
	claims, err := ParseClaims(value)
	if err != nil {
		return Token{}, backends.InvalidConfig(j.field, "identity token from %s: %w", what, err)
	}
	if now := j.now(); !claims.Expires.IsZero() && !now.Before(claims.Expires) {
		return Token{}, backends.Unavailable(fmt.Errorf("identity token from %s: it expired at %s, and this machine's clock says %s: see to it that it is renewed, and that the clock is right",
			what, claims.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	}
	if !j.accepts(claims.Audience) {
		return Token{}, backends.InvalidConfig(j.field, "identity token from %s: it is for %s and not for %q: have it issued for that audience, or set %s", what, quoted(claims.Audience), j.audience, j.setting)
	}
	return Token{Value: backends.Secret(value), Expires: claims.Expires}, nil
}

func (j judge) accepts(audience []string) bool {
	return slices.Contains(audience, j.audience)
}

// quoted lists the audiences of a token, which are no secret but come from outside.
func quoted(audience []string) string {
	if len(audience) == 0 {
		return "no audience"
	}
	const most, longest = 4, 128
	var names []string
	for _, a := range audience[:min(len(audience), most)] {
		names = append(names, fmt.Sprintf("%.*q", longest, a))
	}
	if len(audience) > most {
		names = append(names, "…")
	}
	return "audience " + strings.Join(names, ", ")
}

// problem is an error of a source: what was wanted, of whom, and what came of it. The kind is backends.Refused or backends.Unavailable.
func problem(kind func(error) error, what, format string, args ...any) error {
	return kind(fmt.Errorf("identity token from %s: %w", what, fmt.Errorf(format, args...)))
}

// misconfigured is problem for what a setting has to mend. Field is below the source's own, or empty.
func (j judge) misconfigured(field, what, format string, args ...any) error {
	return backends.InvalidConfig(j.field+field, "identity token from %s: %w", what, fmt.Errorf(format, args...))
}

// ended turns the end of a context into what happened.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return errors.New("the request was given up")
	}
	return errors.New("there was no answer within the time that there is")
}

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func settingsRules() []Rule {
	return []Rule{
		{Name: "settings", Demand: "The backend accepts the settings it is given, within five seconds.", judge: judgeSettings},
		{Name: "settings-unknown-field", Demand: "A field that the backend does not know is refused with KIND_MISCONFIGURED, by its path.", judge: unknownField},
		{Name: "settings-wrong-type", Demand: "A value of the wrong type is refused with KIND_MISCONFIGURED, by the path of its field.", judge: wrongType},
		{Name: "settings-not-an-object", Demand: "Settings that are no JSON object are refused with KIND_MISCONFIGURED, and the backend lives on.", judge: notAnObject},
		{Name: "settings-offline", Demand: "The settings are accepted where there is no network, as `credential-broker validate` needs it.", judge: offline},
		{Name: "before-configure", Demand: "Asked for credentials before it has settings, the backend answers with an error, and takes its settings afterwards.", judge: beforeConfigure},
	}
}

// quick is how long Configure may take: it has nothing to wait for.
const quick = 5 * time.Second

func judgeSettings(ctx context.Context, t *trial) error {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return err
	}
	began := time.Now()
	if err := p.mustConfigure(ctx); err != nil {
		return err
	}
	if took := time.Since(began); took > quick {
		return fail("leave what takes time, the network above all, to the first request", "it took %s to accept its settings", took.Round(time.Millisecond))
	}
	return nil
}

// refuse gives a new backend settings that it has to refuse, and returns what it said.
func (t *trial) refuse(ctx context.Context, what string, settings []byte) ([]*backendv1.Error, error) {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return nil, err
	}
	problems, err := p.configure(ctx, settings)
	if err != nil {
		return nil, p.broken("given "+what, err)
	}
	for _, problem := range problems {
		if problem.GetKind() != backendv1.Error_KIND_MISCONFIGURED {
			return nil, fail("report every problem with the settings as KIND_MISCONFIGURED", "given %s, it answers %s", what, describe(problem))
		}
	}
	if len(problems) > 0 {
		if _, err := p.describe(ctx); err != nil {
			return nil, p.broken("asked to describe itself after it had refused "+what, err)
		}
	}
	p.finish()
	return problems, nil
}

// with are the settings with one field set.
func (s *Suite) with(field string, value json.RawMessage) []byte {
	fields := maps.Clone(s.fields)
	fields[field] = value
	return mustJSON(fields)
}

// mustJSON encodes what can be encoded: strings, and JSON that has been parsed.
func mustJSON(v any) []byte {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return encoded
}

// unknown is a field that no backend has.
const unknown = "conformanceUnknownField"

func unknownField(ctx context.Context, t *trial) error {
	if err := t.needs("settings"); err != nil {
		return err
	}
	problems, err := t.refuse(ctx, "a field it does not know", t.with(unknown, json.RawMessage(`"x"`)))
	if err != nil {
		return err
	}
	const mend = "decode strictly (in Go: backends.Serve does; elsewhere, compare the names in the object with those you know): a misspelt setting is otherwise silently without effect"
	if len(problems) == 0 {
		return fail(mend, "it accepted the field %q", unknown)
	}
	if !slices.ContainsFunc(problems, func(e *backendv1.Error) bool { return e.GetField() == unknown }) {
		return fail("put the field's path into the error's `field`", "refusing the field %q, it does not name it: %s", unknown, list(problems))
	}
	return nil
}

func wrongType(ctx context.Context, t *trial) error {
	if err := t.needs("settings"); err != nil {
		return err
	}
	if len(t.fields) == 0 {
		return notRun("the Config has no fields")
	}
	const most = 25
	fields := slices.Sorted(maps.Keys(t.fields))
	if len(fields) > most {
		t.note("of %d fields only the first %d were looked at", len(fields), most)
		fields = fields[:most]
	}
	for _, field := range fields {
		if err := t.wrongTypeOf(ctx, field); err != nil {
			return err
		}
	}
	return nil
}

// wrongTypeOf tries the types that are not the field's until one is refused: a field may take more than one type, but not all of them.
func (t *trial) wrongTypeOf(ctx context.Context, field string) error {
	for _, value := range []string{`[{"conformance":[1]}]`, `{"conformance":[{}]}`, `-1.5e-3`, `true`, `"conformance"`} {
		if jsonType(json.RawMessage(value)) == jsonType(t.fields[field]) {
			continue
		}
		what := fmt.Sprintf("%s in the field %q, which holds %s", jsonType(json.RawMessage(value)), field, jsonType(t.fields[field]))
		problems, err := t.refuse(ctx, what, t.with(field, json.RawMessage(value)))
		if err != nil {
			return err
		}
		if len(problems) == 0 {
			continue
		}
		if !slices.ContainsFunc(problems, func(e *backendv1.Error) bool { return strings.HasPrefix(e.GetField(), field) }) {
			return fail("put the field's path into the error's `field`", "given %s, it does not name the field: %s", what, list(problems))
		}
		return nil
	}
	return fail("check the types of the settings (in Go: backends.Serve does)", "it accepts any type in the field %q", field)
}

func jsonType(raw json.RawMessage) string {
	switch raw = bytes.TrimSpace(raw); raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// noObjects are settings that are no JSON object, with what to call them.
func noObjects() []struct{ what, settings string } {
	const deep = 20_000
	return []struct{ what, settings string }{
		{"a list as its settings", `[]`},
		{"null as its settings", `null`},
		{"a string as its settings", `"{}"`},
		{"a number as its settings", `7`},
		{"settings that break off", `{"`},
		{"settings that are not JSON", `a: b`},
		{"two objects as its settings", `{}{}`},
		{"settings that are not UTF-8", "{\"\xff\":1}"},
		{"settings nested very deeply", strings.Repeat(`{"a":`, deep) + `1` + strings.Repeat(`}`, deep)},
	}
}

func notAnObject(ctx context.Context, t *trial) error {
	for _, c := range noObjects() {
		problems, err := t.refuse(ctx, c.what, []byte(c.settings))
		if err != nil {
			return err
		}
		if len(problems) == 0 {
			return fail("take one JSON object and nothing else", "it accepted %s", c.what)
		}
	}
	return nil
}

func offline(ctx context.Context, t *trial) error {
	if err := t.needs("handshake", "settings"); err != nil {
		return err
	}
	p, err := t.start(ctx, launch{offline: true})
	if errors.Is(err, errOffline) {
		return notRun("the network cannot be taken away from a process here: " + err.Error() + ": try as root")
	}
	if err != nil {
		return err
	}
	began := time.Now()
	err = p.mustConfigure(ctx)
	if f, ok := errors.AsType[*failure](err); ok {
		return fail("leave everything that needs the network to the first request, or to Check", "without a network %s", f.seen)
	}
	if took := time.Since(began); err == nil && took > quick {
		return fail("leave everything that needs the network to the first request, or to Check", "without a network it took %s to accept its settings", took.Round(time.Millisecond))
	}
	return err
}

// finish ends a process before its rule does, where a rule starts many.
func (p *process) finish() {
	p.hangUp()
	killGroup(p.cmd.Process)
	inAnyEvent(time.Second, func() bool { return closed(p.exited) })
}

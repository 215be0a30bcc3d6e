//go:build unix

package plugin

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func TestWhatABackendPrintsOfASecretIsNotLoggedOrReported(t *testing.T) {
	const token, password = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "p4ssw\"ord\\<&>"
	for _, ending := range []string{"", "crash", "error"} {
		t.Run("ending "+ending, func(t *testing.T) {
			b := newBench(t)
			tok := token
			p, _, err := b.ask(t, b.spec(t, "leaky "+ending), &backendv1.GetCredentialsRequest{ServiceAccountToken: &tok})
			if (err != nil) != (ending != "") {
				t.Fatal(err)
			}
			p.Stop()
			<-p.Done()
			said := b.log.String() + fmt.Sprint(err)
			if !strings.Contains(said, "Authorization: B") {
				t.Fatalf("the log lacks what the backend printed:\n%.2000s", said)
			}
			secrets := []string{token, token[:10]}
			if ending != "crash" { // the password is known only from an answer
				secrets = append(secrets, "p4ssw", base64.RawStdEncoding.EncodeToString([]byte("user:"+password)))
			}
			for _, secret := range secrets {
				if i := strings.Index(said, secret); i >= 0 {
					t.Errorf("%q is in the log:\n…%s…", secret, said[max(0, i-80):min(len(said), i+80)])
				}
			}
		})
	}
}

func TestALineOfAStructuredLogKeepsItsLevel(t *testing.T) {
	b := newBench(t)
	p, _ := b.mustAsk(t, "records")
	p.Stop()
	<-p.Done()
	log := regexp.MustCompile(`time=\S+ `).ReplaceAllString(b.log.String(), "")
	log = strings.ReplaceAll(log, " provider=tested backend="+p.spec.Path, "")
	want := `level=WARN msg="from slog" stream=stderr said.n=1 said.who=me
level=ERROR msg="from hclog" stream=stderr
level=DEBUG msg=detail stream=stderr
level=INFO msg="{\"no\":\"record\"}" stream=stderr
level=INFO msg="plain [31m text" stream=stderr
`
	if log != want {
		t.Errorf("got\n%s, want\n%s", log, want)
	}
}

func TestOutputIsKeptFromBothEnds(t *testing.T) {
	o := newOutput()
	s := o.stream("stderr")
	for i := range 10_000 {
		fmt.Fprintf(s, "line %d\n", i)
	}
	fmt.Fprint(s, "panic: here", strings.Repeat("!", 3*maxLine))
	s.end()
	if words, _ := o.lastWords(nil); !strings.HasPrefix(words, "panic: here!!!") || len(words) > 1<<10+8 {
		t.Errorf("last words %q", words)
	}
	first, last, dropped := o.take(true)
	if first[0].text != "line 0" || !last[len(last)-1].cut || len(last[len(last)-1].text) != maxLine {
		t.Errorf("kept from %q to %.20q", first[0].text, last[len(last)-1].text)
	}
	if len(first)+len(last)+dropped != 10_001 || dropped < 9_000-1_000 {
		t.Errorf("%d lines, %d lines, %d dropped", len(first), len(last), dropped)
	}
}

func TestTheBeginningOfASecretInALineWithoutAnEndIsNotLogged(t *testing.T) {
	o := newOutput()
	o.secrets.add("s3cretlong")
	s := o.stream("stderr")
	fmt.Fprint(s, "killed while it printed s3cre")
	s.end()
	log := &logBuffer{}
	o.log(slog.New(slog.NewTextHandler(log, nil)), "tested", "backend")
	words, _ := o.lastWords(nil)
	if said := log.String() + words; strings.Contains(said, "s3cre") || !strings.Contains(said, "killed while it printed") {
		t.Errorf("said: %s", said)
	}
}

func TestRedact(t *testing.T) {
	for name, tt := range map[string]struct {
		secret, text string
		cut          bool
		want         string
	}{
		"as it is":     {"s3cret", "a s3cret b s3cret", false, "a [redacted] b [redacted]"},
		"as JSON":      {"a\"b\\c", `{"x":"a\"b\\c"}`, false, `{"x":"[redacted]"}`},
		"in ASCII":     {"pässwörd", `{"x":"p\u00e4ssw\u00f6rd"}`, false, `{"x":"[redacted]"}`},
		"in a URL":     {"a b/c+d", "u=a+b%2Fc%2Bd", false, "u=[redacted]"},
		"line by line": {"-----BEGIN KEY-----\nMIIabcdef\n-----END KEY-----\n", "MIIabcdef", false, "[redacted]"},
		"cut off":      {"s3cretlong", "text s3cre", true, "text [redacted]"},
		"not a beginning in a text that was not cut": {"s3cretlong", "text s3cre", false, "text s3cre"},
		"no secret": {"", "text", true, "text"},
	} {
		t.Run(name, func(t *testing.T) {
			var s secrets
			s.add(tt.secret)
			if got := s.redact(tt.text, tt.cut); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSecretsThatAreInTheMaskDoNotMultiplyIt(t *testing.T) {
	const mask = "[redacted]"
	var s secrets
	for from := range mask {
		for to := from + 1; to <= len(mask); to++ {
			s.add(mask[from:to])
		}
	}
	if got := s.redact(strings.Repeat("r-e-d-a-c-t-", maxLine/12), false); len(got) > maxLine*len(mask) {
		t.Errorf("%d bytes became %d", maxLine, len(got))
	}
}

func TestASecretThatWasEscapedInAWayOfItsOwnIsNotReported(t *testing.T) {
	p := &Process{output: newOutput()}
	p.Redact("a/secret", "with\ta tab")
	p.output.keep(printed{stream: "stderr", text: `{"level":"error","msg":"login with a\/secret"}`})
	if words, _ := p.output.lastWords(nil); words != "login with [redacted]" {
		t.Errorf("last words %q", words)
	}
	if text := p.text("login with\ta tab"); text != "login [redacted]" {
		t.Errorf("text %q", text)
	}
}

func TestVeryManySecretsAreNotLookedFor(t *testing.T) {
	var s secrets
	var lines strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&lines, "%06d\n", i)
	}
	began := time.Now()
	s.add(login("user", lines.String())...)
	if got := s.redact("anything 199999", false); got != "[redacted]" {
		t.Errorf("got %q", got)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestFindHandshake(t *testing.T) {
	for line, want := range map[string]string{
		"1|1|unix|/d/s|grpc":                 "|1|1|unix|/d/s|grpc",
		"1|1|unix|/d/s|grpc|":                "|1|1|unix|/d/s|grpc",
		"1|1|unix|/d/s|grpc||true":           "|1|1|unix|/d/s|grpc",
		"  1|1|unix|/d/s|grpc\r":             "|1|1|unix|/d/s|grpc",
		"loading...1|1|unix|/d/s|grpc":       "loading...|1|1|unix|/d/s|grpc",
		"21|1|unix|/d/s|grpc":                "|21|1|unix|/d/s|grpc",
		"at 10:21|1|1|unix|/d/s|grpc":        "at 10:21||1|1|unix|/d/s|grpc",
		"1|1|unix|/d/s":                      "|1|1|unix|/d/s|netrpc",
		"1|1|udp|x|grpc":                     "none",
		"1|unix|/d/s|grpc":                   "none",
		"a|b|unix|/d/s|grpc":                 "none",
		"":                                   "none",
		"99999999999999999999|1|unix|/|grpc": "none",
	} {
		t.Run(line, func(t *testing.T) {
			before, g, ok := findHandshake(line)
			got := before + "|" + g.String()
			if !ok {
				got = "none"
			}
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func FuzzHandshake(f *testing.F) {
	for _, seed := range []string{"1|1|unix|/d/s|grpc", "x1|1|unix|/d/s|grpc|cert|true", "1|2|tcp|127.0.0.1:1|netrpc", "||||", "1|1|unix"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		before, g, ok := findHandshake(line)
		if !ok {
			return
		}
		if !strings.Contains(line, before) || strings.ContainsAny(g.String(), "\n") && !strings.Contains(line, "\n") {
			t.Errorf("%q became %q and %q", line, before, g)
		}
		if g.check() == nil && len(strings.Split(g.String(), "|")) != 5 {
			t.Errorf("%q: go-plugin would see more than five fields", g)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, seed := range []*backendv1.GetCredentialsResponse{
		oneCredential("user", "password"),
		{Error: &backendv1.Error{Message: "no\x1b", Field: "a"}},
		{CacheDuration: &durationpb.Duration{Seconds: -1}},
		{Lease: []byte("lease"), Spans: []*backendv1.Span{{Name: "step", Start: &durationpb.Duration{Nanos: -1}, Took: &durationpb.Duration{Seconds: 1}}}},
		{Credentials: []*backendv1.Credential{{Key: "k", Expires: &timestamppb.Timestamp{Nanos: -1}}}},
	} {
		f.Add(must(proto.Marshal(seed)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		response := &backendv1.GetCredentialsResponse{}
		if proto.Unmarshal(raw, response) != nil {
			return
		}
		p := &Process{output: newOutput()}
		response, err := p.judge(p.output.begin(), response)
		if len(response.GetSpans()) > backendv1.MaxSpans {
			t.Errorf("%d spans", len(response.GetSpans()))
		}
		if err != nil {
			why, _ := errors.AsType[*Error](err)
			wantError(t, err, why.Kind, "")
			return
		}
		if n := len(response.GetLease()); n > backendv1.MaxLeaseBytes {
			t.Errorf("a lease of %d bytes", n)
		}
		for _, c := range response.GetCredentials() {
			if c.GetExpires() != nil && c.GetExpires().AsTime().Year() > 9999 {
				t.Errorf("expires %v", c.GetExpires())
			}
			if said := "it said " + c.GetPassword(); c.GetPassword() != "" && p.output.secrets.redact(said, false) == said {
				t.Errorf("%q is not kept out", c.GetPassword())
			}
		}
		if response.GetCacheDuration().AsDuration() < 0 {
			t.Errorf("cache duration %v", response.GetCacheDuration())
		}
	})
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte(`{"level":"INFO","msg":"x s3cret","k":{"a":"s3cret"}}`+"\n"), "s3cret")
	f.Add(bytes.Repeat([]byte{0xbd}, 200), "")
	f.Add([]byte("plain s3c\x00ret\n\n\xff"), "s3c\x00ret")
	f.Fuzz(func(t *testing.T, printed []byte, secret string) {
		o := newOutput()
		o.secrets.add(secret)
		s := o.stream("stderr")
		_, _ = s.Write(printed)
		s.end()
		first, last, _ := o.take(true)
		size := 0
		for _, p := range append(first, last...) {
			size += len(p.text)
			text := o.secrets.redact(p.text, p.cut)
			// The mask, or what stands around it, may itself spell a secret that is made of its letters.
			if len(secret) > 12 && strings.Contains(text, secret) {
				t.Errorf("%q in %q", secret, text)
			}
			_, _ = parseRecord(text)
			if c := clean(text, 100); len(c) > 110 || strings.ContainsAny(c, "\n\x00\x1b") {
				t.Errorf("%q became %q", text, c)
			}
		}
		if size > maxFirst+maxLast {
			t.Errorf("%d bytes kept", size)
		}
	})
}

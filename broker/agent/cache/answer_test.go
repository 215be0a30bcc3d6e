package cache

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

func TestHowLongAnAnswerIsKept(t *testing.T) {
	const h, m, s = time.Hour, time.Minute, time.Second
	said := func(d time.Duration) *time.Duration { return &d }
	expiring := func(durations ...time.Duration) (credentials []broker.Credential) {
		for _, d := range durations {
			credential := broker.Credential{Key: "r.io"}
			if d != 0 {
				credential.Expires = noon.Add(d)
			}
			credentials = append(credentials, credential)
		}
		return credentials
	}
	tests := []struct {
		name        string
		answer      broker.Answer
		byDefault   *time.Duration
		token       time.Duration
		fresh, good time.Duration
	}{
		{"nobody said", broker.Answer{Credentials: expiring(0)}, nil, 0, 0, 0},
		{"nobody said, and a token ends", broker.Answer{Credentials: expiring(0)}, nil, h, 0, 0},
		{"the backend says so", broker.Answer{CacheDuration: said(h), Credentials: expiring(0)}, said(9 * h), 0, h, h},
		{"the backend says not at all", broker.Answer{CacheDuration: said(0), Credentials: expiring(h)}, said(h), 0, 0, 0},
		{"the backend says less than nothing", broker.Answer{CacheDuration: said(-h), Credentials: expiring(0)}, said(h), 0, 0, 0},
		{"the configuration says so", broker.Answer{Credentials: expiring(0)}, said(h), 0, h, h},
		{"the configuration says not at all", broker.Answer{Credentials: expiring(0)}, said(0), 0, 0, 0},
		{"a long life has a margin of five minutes", broker.Answer{Credentials: expiring(12 * h)}, said(m), 0, 12*h - 5*m, 12*h - 30*s},
		{"a shorter one of a tenth", broker.Answer{Credentials: expiring(20 * m)}, nil, 0, 18 * m, 20*m - 30*s},
		{"a short one of half a minute", broker.Answer{Credentials: expiring(2 * m)}, nil, 0, 90 * s, 90 * s},
		{"one that is over in half a minute is not kept", broker.Answer{Credentials: expiring(30 * s)}, nil, 0, 0, 0},
		{"one that is over already neither", broker.Answer{Credentials: expiring(-h)}, nil, 0, 0, 0},
		{"the first of several ends it", broker.Answer{Credentials: expiring(12*h, 20*m, 0, h)}, nil, 0, 18 * m, 20*m - 30*s},
		{"the backend wants it shorter", broker.Answer{CacheDuration: said(m), Credentials: expiring(h)}, nil, 0, m, h - 30*s},
		{"the backend wants it longer than it lives", broker.Answer{CacheDuration: said(9 * h), Credentials: expiring(h)}, nil, 0, h - 5*m, h - 30*s},
		{"the token ends sooner", broker.Answer{CacheDuration: said(h), Credentials: expiring(2 * h)}, nil, 10 * m, 10 * m, 10 * m},
		{"the token ends between the two", broker.Answer{Credentials: expiring(h)}, nil, h - 2*m, h - 5*m, h - 2*m},
		{"no credentials, for a while", broker.Answer{CacheDuration: said(m)}, nil, 0, m, m},
		{"no credentials, by default", broker.Answer{}, said(m), 0, m, m},
		{"no credentials, and nobody said", broker.Answer{}, nil, 0, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := node("p")
			p.DefaultCacheDuration = test.byDefault
			var token time.Time
			if test.token != 0 {
				token = noon.Add(test.token)
			}
			got, ok := lifeOf(test.answer, p, token, noon)
			if ok != (test.fresh > 0) {
				t.Fatalf("kept: %v", ok)
			}
			if ok && (got.fresh.Sub(noon) != test.fresh || got.good.Sub(noon) != test.good) {
				t.Errorf("fresh for %s and good for %s, want %s and %s", got.fresh.Sub(noon), got.good.Sub(noon), test.fresh, test.good)
			}
		})
	}
}

// What is kept has to say of itself later what the source would say then, if it gave the same answer with what is left of its time.
func TestAnAnswerCountsDownAsMergeDoes(t *testing.T) {
	const h, m = time.Hour, time.Minute
	said := func(d time.Duration) *time.Duration { return &d }
	expiring := []broker.Credential{{Key: "r.io", Username: "u", Password: "p", Expires: noon.Add(2 * h)}}
	endless := []broker.Credential{{Key: "r.io", Username: "u", Password: "p"}}
	for name, test := range map[string]struct {
		byDefault *time.Duration
		cold      func(age time.Duration) (broker.Answer, *time.Duration)
	}{
		"said by the backend": {nil, func(age time.Duration) (broker.Answer, *time.Duration) {
			return broker.Answer{CacheDuration: said(h - age), Credentials: endless}, nil
		}},
		"said by the backend, and expiring": {said(m), func(age time.Duration) (broker.Answer, *time.Duration) {
			return broker.Answer{CacheDuration: said(h - age), Credentials: expiring}, said(m)
		}},
		"expiring": {said(m), func(time.Duration) (broker.Answer, *time.Duration) {
			return broker.Answer{Credentials: expiring}, said(m)
		}},
		"by default": {said(h), func(age time.Duration) (broker.Answer, *time.Duration) {
			return broker.Answer{Credentials: endless}, said(h - age)
		}},
		"no credentials, by default": {said(h), func(age time.Duration) (broker.Answer, *time.Duration) { return broker.Answer{}, said(h - age) }},
	} {
		t.Run(name, func(t *testing.T) {
			p := node("p")
			p.DefaultCacheDuration = test.byDefault
			first, _ := test.cold(0)
			l, ok := lifeOf(first, p, time.Time{}, noon)
			if !ok {
				t.Fatal("not kept")
			}
			for age := time.Duration(0); age < l.fresh.Sub(noon); age += 7 * m {
				now := noon.Add(age)
				want, byDefault := test.cold(age)
				changed := *p
				changed.DefaultCacheDuration = byDefault
				if diff := cmp.Diff(merged(t, &changed, want, now), merged(t, p, countDown(first, p, l, now), now)); diff != "" {
					t.Fatalf("after %s (-cold +kept):\n%s", age, diff)
				}
			}
			if stale := merged(t, p, countDown(first, p, l, l.fresh), l.fresh); stale.CacheDuration != 0 {
				t.Errorf("past its time it may be reused for %s", stale.CacheDuration)
			}
			if back := countDown(first, p, l, noon.Add(-h)); back.CacheDuration != nil && *back.CacheDuration > h {
				t.Errorf("when the clock is put back it may be reused for %s", *back.CacheDuration)
			}
		})
	}
}

func merged(t *testing.T, p *config.Provider, answer broker.Answer, now time.Time) broker.Response {
	t.Helper()
	request := broker.Request{Image: "r.io/a"}
	response, _, err := broker.Merge(broker.Merging{Request: request, RegistryWide: true, Now: now}, []broker.Slot{{Decision: broker.Decision{Provider: p, Asked: true, Image: request.Image}, Answer: answer}})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func TestASealedAnswerIsTheSameAgain(t *testing.T) {
	answer := broker.Answer{
		RegistryWide: true, CacheDuration: new(time.Hour), Lease: "lease",
		Credentials: []broker.Credential{{Key: "a.io", Username: "u", Password: "p", Expires: noon}, {Key: "b.io"}, {Key: "c.io", Username: "ü", Password: "\x00long"}},
	}
	s := store(answer, "token")
	got, ok := s.answer()
	want := answer
	want.Lease = ""
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.lease() != "lease" || s.token() != "token" {
		t.Error("lease or token differ")
	}
	s.setToken("another")
	again, _ := s.answer()
	if diff := cmp.Diff(want, again); diff != "" || s.lease() != "lease" || s.token() != "another" {
		t.Errorf("with another token (-want +got):\n%s", diff)
	}
	s.secrets.wipe()
	if _, ok := s.answer(); ok || s.lease() != "" || s.token() != "" {
		t.Error("a wiped answer gives something")
	}
}

func TestSecretsAreClearedWhenTheyAreWiped(t *testing.T) {
	data := []byte("userpassword")
	s := &sealed{data: data, ends: []int{4, 12}} // in Go's heap, where it can still be looked at
	if got, ok := s.open(1); !ok || got != "password" {
		t.Fatal("the second secret is not there")
	}
	s.wipe()
	if diff := cmp.Diff(make([]byte, len(data)), data); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
	s.wipe() // does no harm again
	if _, ok := s.open(1); ok {
		t.Error("a wiped secret can be read")
	}
}

func TestSecretsLieOutsideOfTheHeap(t *testing.T) {
	s := seal("user", "password")
	defer s.wipe()
	if runtime.GOOS != "linux" {
		t.Log("NOT RUN: only Linux says where memory is")
		return
	}
	if !s.mapped {
		t.Fatal("no memory of its own")
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	// VmFlags: "dd" is do not dump, "lo" is locked.
	address := uint64(uintptr(unsafe.Pointer(&s.data[0])))
	var inside bool
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= address && address < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			if fields := strings.Fields(flags); !slices.Contains(fields, "dd") || s.locked != slices.Contains(fields, "lo") {
				t.Errorf("flags %q, locked: %v", fields, s.locked)
			}
			return
		}
	}
	t.Error("not found in the map of the process")
}

func TestNothingSecretIsPrinted(t *testing.T) {
	s := store(broker.Answer{Credentials: []broker.Credential{{Key: "r.io", Username: "user", Password: "hunter2"}}}, "tok")
	i := &item{ask: ask{provider: node("p"), request: broker.Request{Image: "r.io/a", Token: secret.Secret("hunter2")}}, answer: &keptAnswer{stored: s}}
	text := fmt.Sprintf("%+v %+v %+v", i.held(), i.attrs(), i.answer.secrets)
	for _, hidden := range []string{"hunter2", "tok", "user"} {
		if strings.Contains(text, hidden) {
			t.Errorf("%q is printed: %s", hidden, text)
		}
	}
}

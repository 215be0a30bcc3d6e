package broker

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker/config"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// slot is an answered slot; each pair is "key=user", the password being the user's name backwards-free: "p-"+user.
func slot(name string, answer Answer, pairs ...string) Slot {
	for _, pair := range pairs {
		key, user, _ := strings.Cut(pair, "=")
		answer.Credentials = append(answer.Credentials, Credential{Key: key, Username: user, Password: secretOf("p-" + user)})
	}
	return Slot{Decision: Decision{Provider: provider(name, "*"), Asked: true}, Answer: answer}
}

func failed(name string, kind Kind) Slot {
	return Slot{Decision: Decision{Provider: provider(name, "*"), Asked: true}, Err: Errorf(kind, "no")}
}

func pairs(r Response) []string {
	var got []string
	for _, e := range r.Auth {
		got = append(got, e.Key+"="+e.Username)
	}
	return got
}

func TestMergeFirst(t *testing.T) {
	tests := []struct {
		name  string
		image string
		slots []Slot
		want  []string
	}{
		{"the earlier provider wins an overlapping key", "r.io/app", []Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "r.io=b")}, []string{"r.io=a"}},
		{
			"also when both spell it differently", "r.io/app",
			[]Slot{slot("a", Answer{}, "https://r.io/v1/=a"), slot("b", Answer{}, "r.io=b", "http://r.io/v2/app=c")},
			[]string{"http://r.io/v2/app=c", "https://r.io/v1/=a"},
		},
		{"different keys are all given", "r.io/team/app", []Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "r.io/team=b")}, []string{"r.io/team=b", "r.io=a"}},
		{"keys that do not match are dropped", "r.io/app", []Slot{slot("a", Answer{}, "r.io=a", "other.io=x", "r.io:5000=x", "r.io/team=x", "*.r.io=x")}, []string{"r.io=a"}},
		{"a key that does not parse is dropped", "r.io/app", []Slot{slot("a", Answer{}, "r.io:port=x", "%zz=x", "r.io=a")}, []string{"r.io=a"}},
		{"Docker Hub's last resort matches a Docker Hub image", "docker.io/library/nginx", []Slot{slot("a", Answer{}, "https://index.docker.io/v1/=a")}, []string{"https://index.docker.io/v1/=a"}},
		{"and no other", "r.io/library/nginx", []Slot{slot("a", Answer{}, "index.docker.io=a")}, nil},
		{"a failed provider spoils nothing", "r.io/app", []Slot{failed("a", Unavailable), slot("b", Answer{}, "r.io=b")}, []string{"r.io=b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, policy := range []config.OverlapPolicy{config.First} {
				r, _, err := Merge(Merging{Request: Request{Image: test.image}, Policy: policy, Now: now}, test.slots)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, pairs(r)); diff != "" {
					t.Errorf("auth (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestMergeFallback(t *testing.T) {
	tests := []struct {
		name  string
		image string
		slots []Slot
		want  []string
	}{
		{
			"without two values for a key it is First", "r.io/team/app",
			[]Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "https://r.io=a", "r.io/team=b")},
			[]string{"r.io/team=b", "r.io=a"},
		},
		{"two values become a ladder", "r.io/app", []Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "r.io=b")}, []string{"r.io/app=a", "r.io/ap=b"}},
		{
			"the more specific key comes first, then provider order", "r.io/app",
			[]Slot{slot("a", Answer{}, "r.io=a", "*.io=g"), slot("b", Answer{}, "r.io=b", "r.io/ap=c")},
			[]string{"r.io/app=c", "r.io/ap=a", "r.io/a=b", "r.io=g"},
		},
		{
			"repeated values come once", "r.io/app",
			[]Slot{slot("a", Answer{}, "r.io=a", "r.io/app=b"), slot("b", Answer{}, "r.io=b"), slot("c", Answer{}, "r.io=a")},
			[]string{"r.io/app=b", "r.io/ap=a"},
		},
		{
			"a short path is helped by stars", "r.io/a",
			[]Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "r.io=b"), slot("c", Answer{}, "r.io=c")},
			[]string{"r.io/a=a", "r.io=b", "r*.io/a=c"},
		},
		{
			"Docker Hub's last resort is left out where another key matches", "docker.io/library/nginx",
			[]Slot{slot("a", Answer{}, "index.docker.io=x", "docker.io=a"), slot("b", Answer{}, "docker.io=b", "index.docker.io=y")},
			[]string{"docker.io/library/nginx=a", "docker.io/library/ngin=b"},
		},
		{
			"and laddered where none does", "docker.io/library/nginx",
			[]Slot{slot("a", Answer{}, "index.docker.io=a"), slot("b", Answer{}, "index.docker.io=b")},
			[]string{"docker.io/library/nginx=a", "docker.io/library/ngin=b"},
		},
		{"an IPv6 literal leaves no room", "[::1]:5000/app", []Slot{slot("a", Answer{}, "[::1]:5000=a"), slot("b", Answer{}, "[::1]:5000=b")}, []string{"[::1]:5000=a"}},
		{
			"a path that begins like a version keeps it", "r.io/v1/app",
			[]Slot{slot("a", Answer{}, "r.io=a"), slot("b", Answer{}, "r.io=b")},
			[]string{"r.io/v1/v1/app=a", "r.io/v1/v1/ap=b"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, notes, err := Merge(Merging{Request: Request{Image: test.image}, Policy: config.Fallback, RegistryWide: true, Now: now}, test.slots)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, pairs(r)); diff != "" {
				t.Errorf("auth (-want +got):\n%s", diff)
			}
			if r.CacheKeyType != CacheImage {
				t.Errorf("cacheKeyType %s", r.CacheKeyType)
			}
			if warned := len(notes) > 0 && notes[len(notes)-1].Warning; warned != strings.HasPrefix(test.image, "[") {
				t.Errorf("notes = %v", notes)
			}
		})
	}
}

func TestALadderHasRoomForManyValues(t *testing.T) {
	for _, image := range []string{"r.io/team/app", "r.io/a", "a/b", "localhost", "127.0.0.1:5000/x", "docker.io/library/nginx", "r.io/v2/", "r.io:443/v1/a"} {
		var slots []Slot
		var want []string
		for i := range 30 {
			user := fmt.Sprintf("u%02d", i)
			slots = append(slots, slot(user, Answer{}, image+"="+user))
			want = append(want, user)
		}
		if strings.Contains(image, "/v") {
			for i := range slots {
				slots[i].Answer.Credentials[0].Key = strings.Split(image, "/")[0]
			}
		}
		r, _, err := Merge(Merging{Request: Request{Image: image}, Policy: config.Fallback, Now: now}, slots)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range r.Auth {
			got = append(got, e.Username)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", image, diff)
		}
	}
}

func TestCacheKeyType(t *testing.T) {
	wide := Answer{RegistryWide: true}
	tests := []struct {
		name    string
		routing bool
		slots   []Slot
		want    CacheKeyType
	}{
		{"every answer holds for the registry", true, []Slot{slot("a", wide, "r.io=a"), slot("b", wide, "r.io=b", "*.io=c", "other.io=x")}, CacheRegistry},
		{"routing looks at the path", false, []Slot{slot("a", wide, "r.io=a")}, CacheImage},
		{"one answer holds for the image only", true, []Slot{slot("a", wide, "r.io=a"), slot("b", Answer{}, "*.io=b")}, CacheImage},
		{"even if it lost every key", true, []Slot{slot("a", wide, "r.io=a"), slot("b", Answer{}, "r.io=b")}, CacheImage},
		{"one provider had none", true, []Slot{slot("a", wide, "r.io=a"), slot("b", wide)}, CacheImage},
		{"one provider had none for this image", true, []Slot{slot("a", wide, "r.io=a"), slot("b", wide, "other.io=b")}, CacheImage},
		{"one provider failed", true, []Slot{slot("a", wide, "r.io=a"), failed("b", Refused)}, CacheImage},
		{"a key with a path was given", true, []Slot{slot("a", wide, "r.io/team=a", "r.io=b")}, CacheImage},
		{"a key with a path was dropped", true, []Slot{slot("a", wide, "r.io/other=a", "r.io=b")}, CacheImage},
		{"a key with a path belongs to another host", true, []Slot{slot("a", wide, "other.io/team=a", "r.io=b")}, CacheRegistry},
		{"nobody was asked", true, nil, CacheImage},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, _, err := Merge(Merging{Request: Request{Image: "r.io/team/app"}, Policy: config.First, RegistryWide: test.routing, Now: now}, test.slots)
			if err != nil || r.CacheKeyType != test.want {
				t.Errorf("cacheKeyType %s (error %v), want %s", r.CacheKeyType, err, test.want)
			}
		})
	}
	r, _, _ := Merge(Merging{Request: Request{Image: "docker.io/library/nginx"}, RegistryWide: true, Now: now}, []Slot{slot("a", wide, "https://index.docker.io/v1/=a")})
	if r.CacheKeyType != CacheRegistry {
		t.Errorf("Docker Hub's last resort: %s", r.CacheKeyType)
	}
}

func TestCacheDuration(t *testing.T) {
	expiring := func(in time.Duration) Slot {
		s := slot("a", Answer{}, "r.io=a")
		s.Answer.Credentials[0].Expires = now.Add(in)
		return s
	}
	said := func(d time.Duration, pairs ...string) Slot { return slot("s", Answer{CacheDuration: &d}, pairs...) }
	byDefault := func(d time.Duration, pairs ...string) Slot {
		s := slot("d", Answer{}, pairs...)
		s.Provider.DefaultCacheDuration = &d
		return s
	}
	tests := []struct {
		name  string
		bound *time.Duration
		slots []Slot
		want  time.Duration
	}{
		{"half a day less five minutes", nil, []Slot{expiring(12 * time.Hour)}, 12*time.Hour - 5*time.Minute},
		{"ten minutes less a tenth", nil, []Slot{expiring(10 * time.Minute)}, 9 * time.Minute},
		{"a minute less half of one", nil, []Slot{expiring(time.Minute)}, 30 * time.Second},
		{"almost expired", nil, []Slot{expiring(20 * time.Second)}, 0},
		{"expired", nil, []Slot{expiring(-time.Hour)}, 0},
		{"the shortest counts", nil, []Slot{expiring(12 * time.Hour), said(time.Hour, "r.io=b")}, time.Hour},
		{"what the backend says is bounded by the expiry", nil, []Slot{func() Slot { s := expiring(10 * time.Minute); s.Answer.CacheDuration = new(time.Hour); return s }()}, 9 * time.Minute},
		{"zero is not cached", nil, []Slot{said(0, "r.io=a")}, 0},
		{"negative is not cached", nil, []Slot{said(-time.Hour, "r.io=a")}, 0},
		{"the default where nobody says", nil, []Slot{byDefault(6*time.Hour, "r.io=a")}, 6 * time.Hour},
		{"without a default it is not cached", nil, []Slot{slot("a", Answer{}, "r.io=a")}, 0},
		{"no credentials and nothing said shortens nothing", nil, []Slot{said(time.Hour, "r.io=a"), slot("b", Answer{})}, time.Hour},
		{"no credentials with a default shortens to it", nil, []Slot{said(time.Hour, "r.io=a"), byDefault(time.Minute)}, time.Minute},
		{"no credentials with a duration shortens to it", nil, []Slot{said(time.Hour, "r.io=a"), said(time.Second)}, time.Second},
		{"bounded", new(time.Minute), []Slot{expiring(12 * time.Hour)}, time.Minute},
		{"a bound lengthens nothing", new(time.Hour), []Slot{slot("a", Answer{}, "r.io=a")}, 0},
		{"beside an unavailable provider", nil, []Slot{expiring(12 * time.Hour), failed("b", Unavailable), failed("c", Refused)}, 0},
		{"beside a refused and a misconfigured one", nil, []Slot{expiring(12 * time.Hour), failed("b", Refused), failed("c", Misconfigured)}, time.Minute},
		{"lasting failures lengthen nothing", nil, []Slot{said(time.Second, "r.io=a"), failed("b", Refused)}, time.Second},
		{"nobody was asked", nil, nil, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, _, err := Merge(Merging{Request: Request{Image: "r.io/app"}, MaxCacheDuration: test.bound, Now: now}, test.slots)
			if err != nil || r.CacheDuration != test.want {
				t.Errorf("cacheDuration %s (error %v), want %s", r.CacheDuration, err, test.want)
			}
		})
	}
}

func TestFailuresWithoutCredentialsAreAFailure(t *testing.T) {
	tests := map[string]struct {
		slots []Slot
		fails bool
	}{
		"all failed":                               {[]Slot{failed("a", Refused), failed("b", Unavailable)}, true},
		"one failed, the other had none":           {[]Slot{failed("a", Refused), slot("b", Answer{})}, true},
		"one failed, the other's key was dropped":  {[]Slot{failed("a", Refused), slot("b", Answer{}, "other.io=b")}, true},
		"one failed, the other had one":            {[]Slot{failed("a", Refused), slot("b", Answer{}, "r.io=b")}, false},
		"nobody failed and nobody had credentials": {[]Slot{slot("a", Answer{}), slot("b", Answer{})}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := Merge(Merging{Request: Request{Image: "r.io/app"}, Now: now}, test.slots)
			var failure *Failure
			if errors.As(err, &failure) != test.fails {
				t.Errorf("error = %v", err)
			}
		})
	}
}

func TestAnEchoedTokenIsDroppedUnlessAnswersAreKeptByToken(t *testing.T) {
	for cacheType, want := range map[config.CacheType]int{config.CacheTypeToken: 2, config.CacheTypeServiceAccount: 1} {
		s := slot("a", Answer{RegistryWide: true}, "r.io/app=echo", "r.io=fine")
		s.Provider.TokenAttributes = &config.TokenAttributes{CacheType: cacheType}
		s.Answer.Credentials[0].Password = "the-token"
		r, notes, err := Merge(Merging{Request: Request{Image: "r.io/app", Token: "the-token"}, RegistryWide: true, Now: now}, []Slot{s})
		if err != nil || len(r.Auth) != want {
			t.Errorf("%s: %d credentials (error %v), want %d", cacheType, len(r.Auth), err, want)
		}
		for _, note := range notes {
			if strings.Contains(note.Text, "the-token") {
				t.Errorf("the token is in a note: %s", note.Text)
			}
		}
	}
}

func TestKeysOfAMirrorsAnswerAreRewrittenToItsSource(t *testing.T) {
	p := provider("m")
	p.Mirrors = []config.Mirror{{Source: "docker.io", Endpoint: "mirror.example/hub"}}
	for key, want := range map[string]string{
		"mirror.example":             "docker.io",
		"mirror.example/hub":         "docker.io",
		"mirror.example/hu":          "docker.io",
		"mirror.example/hub/library": "docker.io/library",
		"*.example":                  "docker.io",
		"https://mirror.example/v2/": "docker.io",
		"mirror.example/other":       "",
		"mirror.example/hub*":        "", // not the pattern docker.io*
		"other.example":              "",
		"mirror.example/hub/team":    "", // covers the mirror, but not this image
	} {
		d := Route([]*config.Provider{p}, Request{Image: "docker.io/library/nginx"}).Decisions[0]
		s := Slot{Decision: d, Answer: Answer{RegistryWide: true, Credentials: []Credential{{Key: key, Username: "u"}}}}
		r, _, err := Merge(Merging{Request: Request{Image: "docker.io/library/nginx"}, RegistryWide: true, Now: now}, []Slot{s})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if len(r.Auth) > 0 {
			got = r.Auth[0].Key
		}
		if got != want {
			t.Errorf("key %s is given as %q, want %q", key, got, want)
		}
		if strings.Contains(want, "/") && r.CacheKeyType == CacheRegistry {
			t.Errorf("key %s: cached for the registry", key)
		}
	}
}

func TestTheMostSpecificKeyOfAMirrorsAnswerIsItsSources(t *testing.T) {
	for name, test := range map[string]struct{ source, endpoint, image, want string }{
		"of keys that all cover the endpoint":    {"docker.io", "mirror.example/hub", "docker.io/library/nginx", "docker.io=specific"},
		"Docker Hub's last resort comes last":    {"registry.example", "docker.io", "registry.example/library/nginx", "registry.example=hub"},
		"below a path that the kubelet shortens": {"registry.example/v1/team", "mirror.example/hub", "registry.example/v1/team/app", "registry.example/v1/v1/team=specific"},
	} {
		t.Run(name, func(t *testing.T) {
			p := provider("m")
			p.Mirrors = []config.Mirror{{Source: test.source, Endpoint: test.endpoint}}
			s := slot("m", Answer{}, "mirror.example=general", "mirror.example/hub=specific", "*.example=glob", "index.docker.io=last", "docker.io=hub")
			s.Decision = Route([]*config.Provider{p}, Request{Image: test.image}).Decisions[0]
			r, _, err := Merge(Merging{Request: Request{Image: test.image}, Now: now}, []Slot{s})
			if diff := cmp.Diff([]string{test.want}, pairs(r)); err != nil || diff != "" {
				t.Errorf("error %v, auth (-want +got):\n%s", err, diff)
			}
		})
	}
}

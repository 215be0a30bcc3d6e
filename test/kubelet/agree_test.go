package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"k8s.io/kubernetes/pkg/credentialprovider"
	"pgregory.net/rapid"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	brokerkubelet "github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/secret"
	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// atLeast is how many values the policy Fallback promises to hand on, in order (the contract, "Merging").
const atLeast = 8

// caller plays the make-believe providers to the broker as the exec backend would: it believes of a response what the kubelet's decoder believes.
type caller struct {
	providers map[string]provider
	real      unsafe.Pointer // the kubelet's decoder
	step      *int
	asked     func(name string, request behaviour.Request) // nil if nobody wants to know
}

func (c caller) Call(_ context.Context, p *config.Provider, request broker.Request) (broker.Answer, error) {
	wrapped := c.providers[p.Name]
	shown := behaviour.Request{APIVersion: wrapped.APIVersion, Image: request.Image, Token: string(request.Token), Annotations: request.Annotations}
	if c.asked != nil {
		c.asked(p.Name, shown)
	}
	stdout, status := wrapped.Behaviour.Answer(request.Image, *c.step).Write(shown)
	if status != 0 {
		return broker.Answer{}, fmt.Errorf("exit status %d", status)
	}
	response, err := readResponse(c.real, wrapped.APIVersion, stdout)
	if err != nil {
		return broker.Answer{}, fmt.Errorf("no response")
	}
	answer := broker.Answer{RegistryWide: response.CacheKeyType == "Registry" || response.CacheKeyType == "Global"}
	switch response.CacheKeyType {
	case "Image", "Registry", "Global":
	default:
		return broker.Answer{}, fmt.Errorf("no cacheKeyType")
	}
	if response.CacheDuration != nil {
		answer.CacheDuration = &response.CacheDuration.Duration
	}
	for key, value := range response.Auth {
		answer.Credentials = append(answer.Credentials, broker.Credential{Key: key, Username: value.Username, Password: secret.Secret(value.Password)})
	}
	slices.SortFunc(answer.Credentials, func(a, b broker.Credential) int { return strings.Compare(a.Key, b.Key) })
	return answer, nil
}

// brokerProviders are the providers of a set as the broker's configuration has them.
func (s scenario) brokerProviders() []*config.Provider {
	var providers []*config.Provider
	for _, p := range s.Providers {
		lasts := duration(p.DefaultCacheDuration)
		b := &config.Provider{Name: p.Name, Backend: "exec", MatchImages: p.MatchImages, DefaultCacheDuration: &lasts, Timeout: config.DefaultProviderTimeout}
		if a := p.TokenAttributes; a != nil {
			b.TokenAttributes = &config.TokenAttributes{
				ServiceAccountTokenAudience: a.Audience, CacheType: config.CacheType(a.CacheType), RequireServiceAccount: a.Require,
				RequiredServiceAccountAnnotationKeys: a.RequiredAnnotations, OptionalServiceAccountAnnotationKeys: a.OptionalAnnotations,
			}
		}
		providers = append(providers, b)
	}
	return providers
}

// brokerProcess is the broker as the kubelet's plugin: request bytes in, response bytes out.
func brokerProcess(b *broker.Broker) process {
	return func(data []byte) ([]byte, int) {
		request, version, err := brokerkubelet.ReadRequest(data)
		if err != nil {
			return nil, 1
		}
		result, err := b.Resolve(context.Background(), request)
		if err != nil {
			return nil, 1
		}
		response := brokerkubelet.Response{
			CacheKeyType: string(result.Response.CacheKeyType), CacheDuration: result.Response.CacheDuration,
			Auth: map[string]brokerkubelet.AuthConfig{},
		}
		for _, entry := range result.Response.Auth {
			response.Auth[entry.Key] = brokerkubelet.AuthConfig{Username: entry.Username, Password: entry.Password}
		}
		out, err := response.Encode(version)
		if err != nil {
			return nil, 1
		}
		return out, 0
	}
}

// watched remembers the last response of a process, nil if there was none.
func watched(run process, last *[]byte, calls *int) process {
	return func(request []byte) ([]byte, int) {
		*calls++
		out, status := run(request)
		*last = nil
		if status == 0 {
			*last = bytes.Clone(out)
		}
		return out, status
	}
}

// union are the patterns of all providers.
func (s scenario) union() []string {
	var patterns []string
	for _, p := range s.Providers {
		for _, pattern := range p.MatchImages {
			if !slices.Contains(patterns, pattern) {
				patterns = append(patterns, pattern)
			}
		}
	}
	return patterns
}

// agreement looks up the images of a set, one after another, on a node with an entry for each provider and on a node with the broker's entry.
func agreement(t *rapid.T, tb testing.TB, s scenario) {
	provided.Add(1)
	step := 0
	native := startInProcess(tb, s.entries(), s.processes(&step), identities{})

	byName := map[string]provider{}
	for _, p := range s.Providers {
		byName[p.Name] = p
	}
	b := &broker.Broker{
		Providers: s.brokerProviders(), Policy: config.OverlapPolicy(s.Policy), Timeout: config.DefaultTimeout,
		Caller: caller{providers: byName, real: native.decoder(), step: &step}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	var response []byte
	var calls int
	ours := startInProcess(tb, []entry{{Name: "credential-broker", APIVersion: s.EntryAPI, DefaultCacheDuration: "0s", MatchImages: s.union()}},
		map[string]process{"credential-broker": watched(brokerProcess(b), &response, &calls)}, identities{})

	for ; step < len(s.Images); step++ {
		image := s.Images[step]
		before := calls
		response = nil
		// Providers are asked by the native node first, while it has what they said before; then the answers are compared with a node that asks anew.
		tried, got := native.lookup(image, pod{}), ours.lookup(image, pod{})
		want := expect(s.Policy, image, tried, native.configs(image, pod{}))
		if why := want.differs(got); why != "" {
			cached := ""
			if calls == before {
				cached = " (from the kubelet's cache)"
			}
			t.Fatalf("lookup %d, %s under %s%s: %s\nseparate entries: %v\nbroker's entry:   %v\nits response:     %s", step, image, s.Policy, cached, why, want.values, got, response)
		}
		agreed.Add(1)
		if calls == before && len(got) > 0 {
			reused.Add(1)
		}
		if calls > before {
			checkHints(t, s, step, image, response)
			if len(got) > 1 && s.Policy == "Fallback" {
				fallbacks.Add(1)
			}
		}
	}
}

// processes are the providers of a set, played without processes.
func (s scenario) processes(step *int) map[string]process {
	processes := map[string]process{}
	for _, p := range s.Providers {
		processes[p.Name] = playedBy(p.Behaviour, step, nil)
	}
	return processes
}

// decoder is one of the kubelet's own plugin runners, for its decoder.
func (n *node) decoder() unsafe.Pointer {
	plugin := n.pods(pod{})[0].Elem().FieldByName("provider").Elem().FieldByName("plugin")
	return reflect.NewAt(plugin.Type(), unsafe.Pointer(plugin.UnsafeAddr())).Elem().Interface().(inProcess).real
}

// expected is what the broker's entry has to give for an image.
type expected struct {
	values []behaviour.Value
	// anyOrder: one provider spelled one key twice, so that the kubelet's own order is random.
	anyOrder bool
	// instead is another right answer; nil for none.
	instead []behaviour.Value
	policy  string
}

// expect derives the right answer from what the kubelet tries with separate entries, and from what each of them answered.
func expect(policy, image string, tried []behaviour.Value, configs []credentialprovider.DockerConfig) expected {
	e := expected{values: once(tried), anyOrder: spelledTwice(image, configs), policy: policy}
	first := once(firstOnly(image, configs))
	switch {
	case policy == "First":
		e.values = first
	case strings.HasPrefix(image, "["): // a literal IPv6 host leaves no room for a ladder of keys
		e.instead = first
	}
	return e
}

// differs says in which way the values are not the expected ones; empty if they are.
func (e expected) differs(got []behaviour.Value) string {
	got = once(got)
	if e.instead != nil && slices.Equal(got, e.instead) {
		return ""
	}
	if e.anyOrder {
		for _, v := range got {
			if e.policy == "Fallback" && !slices.Contains(e.values, v) {
				return fmt.Sprintf("%v is a value that the kubelet would not try", v)
			}
		}
		if (len(got) == 0) != (len(e.values) == 0) {
			return "one of them has no credentials"
		}
		if e.policy == "Fallback" && e.instead == nil && len(got) < min(len(e.values), atLeast) {
			return "values are missing"
		}
		return ""
	}
	if e.policy == "Fallback" && len(e.values) > atLeast && len(got) >= atLeast && len(got) <= len(e.values) {
		if slices.Equal(got, e.values[:len(got)]) {
			return ""
		}
	}
	if !slices.Equal(got, e.values) {
		return "not the same credentials in the same order"
	}
	return ""
}

// checkHints holds a response of the broker's against the contract's rules for what it says of itself.
func checkHints(t *rapid.T, s scenario, step int, image string, response []byte) {
	if response == nil {
		return
	}
	var r struct {
		CacheKeyType  string
		CacheDuration string
		Auth          map[string]any
	}
	if err := json.Unmarshal(response, &r); err != nil {
		t.Fatalf("response %s: %v", response, err)
	}
	if r.CacheKeyType == "Registry" {
		registryWide.Add(1)
	}
	for key := range r.Auth {
		index, ok := indexOf(key)
		matched, _ := credentialprovider.URLsMatchStr(index, image)
		if !ok || !matched && index != "index.docker.io" {
			t.Fatalf("lookup %d, %s: key %q does not match the image", step, image, key)
		}
	}
	lasts := duration(r.CacheDuration)
	for _, p := range s.Providers {
		if !slices.ContainsFunc(p.MatchImages, func(pattern string) bool { ok, _ := credentialprovider.URLsMatchStr(pattern, image); return ok }) {
			continue
		}
		answer := p.Behaviour.Answer(image, step)
		if r.CacheKeyType == "Registry" && (answer.Fault != "" || answer.CacheKeyType == "Image" || !serves(answer, image)) {
			t.Fatalf("lookup %d, %s: the answer is for the whole registry, that of provider %s was not", step, image, p.Name)
		}
		bound := duration(p.DefaultCacheDuration)
		if answer.CacheDuration != nil {
			bound = max(0, duration(*answer.CacheDuration))
		}
		if answer.Fault != "" {
			bound = 0
		}
		if lasts > bound && (answer.Fault != "" || len(answer.Auth) > 0) {
			t.Fatalf("lookup %d, %s: the answer may be kept for %s, provider %s allows %s", step, image, lasts, p.Name, bound)
		}
	}
}

// serves says that an answer has a credential that the kubelet could use for the image.
func serves(a behaviour.Answer, image string) bool {
	for key := range a.Auth {
		index, ok := indexOf(key)
		if matched, _ := credentialprovider.URLsMatchStr(index, image); ok && (matched || index == "index.docker.io" && isDefaultRegistryMatch(image)) {
			return true
		}
	}
	return false
}

func duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		panic(err)
	}
	return d
}

func TestAgreementOnGeneratedProviderSets(t *testing.T) {
	checks(*flagSets)
	sets := scenarios(shape{maxProviders: 12, maxImages: 6, faults: true})
	rapid.Check(t, func(r *rapid.T) { agreement(r, t, sets.Draw(r, "set")) })
}

func TestAgreementOnLongSequencesOfPulls(t *testing.T) {
	checks(max(1, *flagSets/3))
	sets := scenarios(shape{maxProviders: 4, maxImages: 25, faults: false})
	rapid.Check(t, func(r *rapid.T) { agreement(r, t, sets.Draw(r, "set")) })
}

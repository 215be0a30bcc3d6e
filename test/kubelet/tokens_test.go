package kubelet

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	brokerkubelet "github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// apiServer makes the tokens and knows the service accounts of the generated sets. One account does not exist.
var apiServer = identities{
	token: func(namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
		answer := request.DeepCopy()
		answer.Status.Token = jwt(request.Spec.Audiences, namespace, name, request.Spec.BoundObjectRef.Name)
		return answer, nil
	},
	account: func(namespace, name string) (*corev1.ServiceAccount, error) {
		annotations := map[string]map[string]string{
			"plain":     {"unrelated": "x"},
			"half":      {"example.com/role": "reader of " + namespace},
			"annotated": {"example.com/role": "writer", "example.com/tenant": namespace, "client-id": "", "unrelated": "x"},
		}[name]
		if annotations == nil {
			return nil, errors.New("not found")
		}
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-of-" + namespace + "-" + name), Annotations: annotations}}, nil
	},
}

// jwt is a token as the API server makes them, without a signature that anybody could check.
func jwt(audiences []string, namespace, account, pod string) string {
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	return part(map[string]any{"alg": "RS256"}) + "." + part(map[string]any{
		"aud": audiences, "sub": "system:serviceaccount:" + namespace + ":" + account,
		"kubernetes.io": map[string]any{"namespace": namespace, "pod": map[string]any{"name": pod}, "serviceaccount": map[string]any{"name": account}},
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("signature"))
}

// byAudience splits a set as the broker's entries do: the providers without token, then those of each audience.
func (s scenario) byAudience() []scenario {
	var audiences []string
	groups := map[string]scenario{}
	for _, p := range s.Providers {
		audience := ""
		if p.TokenAttributes != nil {
			audience = p.TokenAttributes.Audience
		}
		group, known := groups[audience]
		if !known {
			audiences = append(audiences, audience)
			group = s
			group.Providers = nil
		}
		group.Providers = append(group.Providers, p)
		groups[audience] = group
	}
	var split []scenario
	for _, audience := range audiences {
		split = append(split, groups[audience])
	}
	return split
}

// brokerEntries are the entries that the kubelet has for the broker, as kubelet-config prints them, and their names.
func (s scenario) brokerEntries(t testing.TB, single bool) (document []byte, names []string) {
	entries, _, err := brokerkubelet.Entries(&config.Config{Providers: s.brokerProviders()}, brokerkubelet.EntryOptions{Single: single})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name)
	}
	return brokerkubelet.Render(entries), names
}

// views is what each provider was shown.
type views struct {
	mutex sync.Mutex // the broker asks its providers at the same time
	shown map[string][]string
}

func (v *views) add(name string, r behaviour.Request) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.shown[name] = append(v.shown[name], fmt.Sprintf("%s token %q annotations %v", r.Image, r.Token, r.Annotations))
}

// agreementOfTokens is agreement for the providers of one of the broker's entries, pulls being made for pods with and without service accounts.
func agreementOfTokens(t *rapid.T, tb testing.TB, s scenario, single bool) {
	provided.Add(1)
	step := 0
	var native, ours *views
	start := func() (*node, *node) {
		native, ours = &views{shown: map[string][]string{}}, &views{shown: map[string][]string{}}
		separate := map[string]process{}
		byName := map[string]provider{}
		for _, p := range s.Providers {
			separate[p.Name] = playedBy(p.Behaviour, &step, func(r behaviour.Request) { native.add(p.Name, r) })
			byName[p.Name] = p
		}
		nativeNode := startInProcess(tb, s.entries(), separate, apiServer)
		b := &broker.Broker{
			Providers: s.brokerProviders(), Policy: config.OverlapPolicy(s.Policy), Timeout: config.DefaultTimeout, Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Caller: caller{providers: byName, real: nativeNode.decoder(), step: &step, asked: func(name string, r behaviour.Request) { ours.add(name, r) }},
		}
		document, names := s.brokerEntries(tb, single)
		if len(names) != 1 {
			t.Fatalf("%d entries for the providers of one audience: %s", len(names), document)
		}
		return nativeNode, startDocument(tb, document, map[string]process{names[0]: brokerProcess(b)}, apiServer)
	}
	nativeNode, ourNode := start()
	for ; step < len(s.Images); step++ {
		image, p := s.Images[step], s.Pods[step]
		want := expect(s.Policy, image, nativeNode.lookup(image, p), nativeNode.configs(image, p))
		got := ourNode.lookup(image, p)
		if why := want.differs(got); why != "" {
			t.Fatalf("lookup %d, %s for %+v under %s: %s\nseparate entries: %v\nbroker's entry:   %v", step, image, p, s.Policy, why, want.values, got)
		}
		agreed.Add(1)

		// Nodes that have nothing cached show which provider gets to see what.
		freshNative, freshOurs := start()
		_, _ = freshNative.lookup(image, p), freshOurs.lookup(image, p)
		for _, provider := range s.Providers {
			if !slices.Equal(native.shown[provider.Name], ours.shown[provider.Name]) {
				t.Fatalf("lookup %d, %s for %+v: the kubelet shows provider %s %q, the broker shows it %q", step, image, p, provider.Name, native.shown[provider.Name], ours.shown[provider.Name])
			}
		}
	}
}

func TestTokensReachTheSameProvidersAndAnswersTheSamePods(t *testing.T) {
	checks(max(1, *flagSets/3))
	sets := scenarios(shape{maxProviders: 6, maxImages: 6, tokens: true})
	rapid.Check(t, func(r *rapid.T) {
		for _, group := range sets.Draw(r, "set").byAudience() {
			agreementOfTokens(r, t, group, false)
		}
	})
}

func TestTokensReachTheSameProvidersFromASingleEntry(t *testing.T) {
	checks(max(1, *flagSets/6))
	sets := scenarios(shape{maxProviders: 6, maxImages: 6, tokens: true}).Filter(func(s scenario) bool {
		// One entry has one audience; and without a token the kubelet does not start it, which kubelet-config says when it prints such an entry.
		audiences := 0
		for _, group := range s.byAudience() {
			if group.Providers[0].TokenAttributes != nil {
				audiences++
			}
		}
		return audiences < 2 && !slices.ContainsFunc(s.Pods, func(p pod) bool { return p.ServiceAccount == "absent" })
	})
	rapid.Check(t, func(r *rapid.T) { agreementOfTokens(r, t, sets.Draw(r, "set"), true) })
}

// An entry without --audience shows the broker tokens of one audience, whatever others its providers want.
func TestATokenForAnotherAudienceIsNotHandedOver(t *testing.T) {
	answer := map[string]behaviour.Answer{"*": {CacheKeyType: "Image", For: "token", Auth: map[string]behaviour.Value{"registry.io": {Username: "u", Password: "p"}}}}
	s := scenario{Policy: "First"}
	for _, audience := range []string{"right.example", "wrong.example"} {
		s.Providers = append(s.Providers, provider{Behaviour: behaviour.Provider{Answers: answer}, entry: entry{
			Name: audience, APIVersion: behaviour.V1, DefaultCacheDuration: "1h",
			MatchImages: []string{"registry.io"}, TokenAttributes: &tokenAttributes{Audience: audience, CacheType: "Token"},
		}})
	}
	step := 0
	shown := &views{shown: map[string][]string{}}
	decoder := startInProcess(t, s.entries(), s.processes(&step), apiServer).decoder()
	b := &broker.Broker{
		Providers: s.brokerProviders(), Policy: config.First, Timeout: config.DefaultTimeout, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Caller: caller{providers: map[string]provider{"right.example": s.Providers[0], "wrong.example": s.Providers[1]}, real: decoder, step: &step, asked: shown.add},
	}
	var response []byte
	calls := 0
	one := s.Providers[0].entry
	one.Name = "credential-broker"
	n := startInProcess(t, []entry{one}, map[string]process{one.Name: watched(brokerProcess(b), &response, &calls)}, apiServer)
	got := n.lookup("registry.io/app", pod{Namespace: "team", Name: "pod", UID: "u", ServiceAccount: "plain"})
	if len(got) != 1 || len(shown.shown["right.example"]) != 1 {
		t.Errorf("the provider of the right audience was asked %d times, and the kubelet has %v", len(shown.shown["right.example"]), got)
	}
	if len(shown.shown["wrong.example"]) != 0 {
		t.Errorf("the other provider was shown %q", shown.shown["wrong.example"])
	}
	if !bytes.Contains(response, []byte(`"cacheDuration":"1m0s"`)) {
		t.Errorf("a provider that is misconfigured leaves the others' answer for a minute at most; the response was %s", response)
	}
}

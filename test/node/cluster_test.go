//go:build linux

package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Scenario 2: whose pod it is decides, by its service account token, through the very entries and the RBAC that kubelet-config prints.
func TestClusterOfTwoServiceAccountsOneMayPullAndTheOtherMayNot(t *testing.T) {
	const audience = "registry.example"
	n := New(t)
	c := n.Cluster(t)
	for _, team := range []string{"team-a", "team-b"} {
		c.ServiceAccount(t, team, "puller")
	}
	registry := c.TokenRegistry(t, audience, map[string][]string{"team-a": {"system:serviceaccount:team-a:puller"}})
	image := registry.Push(t, "team-a/app")
	registry.mustBelieveNoOtherToken(t)

	n.Install(t, "test/node/podtoken", n.Libexec+"/backends", "credential-backend-podtoken")
	n.Configure(t, fmt.Sprintf(`providers:
- name: pods
  backend: podtoken
  matchImages: [%q]
  tokenAttributes: {serviceAccountTokenAudience: %s, requireServiceAccount: true}
`, registry.Host, audience))
	n.Enter(t)
	n.StartKubelet(t)

	// Without what the cluster has to allow, the kubelet gets no token, and never starts the broker.
	c.Pod(t, "team-a", "puller", "early", image)
	n.Refused(t, "team-a", "early")
	const words = "not authorized to request tokens for audience"
	await(t, "the kubelet's reason", n.Kubelet, func() (bool, string) { return strings.Contains(n.Kubelet.Log(), words), tail(n.Kubelet.Log()) })
	t.Logf("the kubelet without the RBAC: %s", lineWith(n.Kubelet.Log(), words))
	if metrics := n.Metrics(t); strings.Contains(metrics, "kubelet_credential_provider_plugin_duration_count{") {
		t.Error("the kubelet ran the broker without a token")
	}
	if verdicts := registry.Verdicts(); len(verdicts) != 0 {
		t.Errorf("the registry was shown a token: %q", verdicts)
	}

	c.Apply(t, n.Broker(t, "kubelet-config", "--rbac"))
	n.Running(t, "team-a", "early") // the kubelet tries again by itself
	c.Pod(t, "team-b", "puller", "stranger", registry.Push(t, "team-a/other"))
	n.Refused(t, "team-b", "stranger")
	c.Event(t, "team-b", "stranger", "403 Forbidden")
	c.Pod(t, "team-a", "puller", "friend", registry.Push(t, "team-a/third"))
	n.Running(t, "team-a", "friend")
	// What is on the node already is no more the stranger's for that: the kubelet has noted whose credentials it came with.
	c.Pod(t, "team-b", "puller", "freeloader", image)
	n.Refused(t, "team-b", "freeloader")

	verdicts := registry.Verdicts()
	t.Logf("the registry:\n%s", strings.Join(verdicts, "\n"))
	for _, want := range []string{
		"let in system:serviceaccount:team-a:puller, in pod early on node1: may pull from team-a", "refused system:serviceaccount:team-b:puller, in pod stranger on node1: may not pull from team-a",
		"let in system:serviceaccount:team-a:puller, in pod friend on node1: may pull from team-a",
	} {
		if !slices.Contains(verdicts, want) {
			t.Errorf("the registry never said: %s", want)
		}
	}
	for _, verdict := range verdicts {
		if strings.HasPrefix(verdict, "let in system:serviceaccount:team-b") || strings.HasPrefix(verdict, "refused a token") {
			t.Error(verdict)
		}
	}
	n.mustHaveAsked(t, "credential-broker-"+audience)
}

// mustBelieveNoOtherToken: a registry that believed anything would show nothing.
func (r *TokenRegistry) mustBelieveNoOtherToken(t *testing.T) {
	t.Helper()
	issue := func(audience string) string {
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
		token, err := r.cluster.Client.CoreV1().ServiceAccounts("team-a").CreateToken(t.Context(), "puller", request, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return token.Status.Token
	}
	good := issue(r.audience)
	var known claims
	parsed, err := jwt.ParseSigned(good, []jose.SignatureAlgorithm{jose.ES256})
	if err == nil {
		err = parsed.UnsafeClaimsWithoutVerification(&known)
	}
	if err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(good, ".")
	payload, _, _ := strings.Cut(rest, ".")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := jwt.Signed(signer).Claims(known).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	signature := signatureOf(issue("another.example"))
	for what, token := range map[string]string{"of another audience": issue("another.example"), "signed by somebody else": forged, "with another token's signature": header + "." + payload + "." + signature, "that is none": "none"} {
		if who, err := r.verify(t.Context(), token); err == nil {
			t.Fatalf("the registry believes a token %s: %+v", what, who)
		}
	}
	if _, err := r.verify(t.Context(), good); err != nil {
		t.Fatalf("the registry does not believe a good one: %v", err)
	}
}

// signatureOf is the last part of a token.
func signatureOf(token string) string {
	return token[strings.LastIndex(token, ".")+1:]
}

// lineWith is the first line of a log with these words in it.
func lineWith(log, words string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, words) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

package vaultserver

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

func TestKubernetes(t *testing.T) {
	issuer := cloud.New(t).AddIssuer("https://kubernetes.default.svc.cluster.local")
	other := cloud.New(t).AddIssuer("https://kubernetes.default.svc.cluster.local")
	s := New(t, Options{})
	a := s.Kubernetes("kubernetes", issuer)
	theirs := &APIServer{issuer: other, uids: a.uids}
	s.KubernetesRole("kubernetes", "puller", map[string]any{"bound_service_account_names": "web", "bound_service_account_namespaces": "shop"})
	s.KubernetesRole("kubernetes", "vault", map[string]any{"audience": "vault"})
	secret, err := s.login("kubernetes", map[string]any{"role": "puller", "jwt": a.Token("shop", "web", nil)})
	if err != nil || secret.Auth.Metadata["service_account_namespace"] != "shop" || secret.Auth.Metadata["service_account_name"] != "web" {
		t.Errorf("a login: %+v, %v", secret, err)
	}
	if _, err := s.login("kubernetes", map[string]any{"role": "vault", "jwt": a.Token("shop", "web", map[string]any{"aud": []string{"vault"}})}); err != nil {
		t.Errorf("a token for the role's own audience: %v", err)
	}
	// Vault looks at the claims itself before it asks, but verifies nothing.
	before := a.Reviews()
	for _, test := range []struct{ name, role, token, words string }{
		{"another account", "puller", a.Token("shop", "db", nil), "service account name not authorized"},
		{"another namespace", "puller", a.Token("evil", "web", nil), "namespace not authorized"},
		{"another audience than the role's", "vault", a.Token("shop", "web", nil), "audience claim does not match"},
		{"expired", "puller", a.Token("shop", "web", map[string]any{"exp": time.Now().Unix() - 600}), "token is expired"},
	} {
		_, err := s.login("kubernetes", map[string]any{"role": test.role, "jwt": test.token})
		if status, _ := refusal(err); status != http.StatusForbidden {
			t.Errorf("%s: %v", test.name, err)
		}
		wantRefusal(t, err, http.StatusForbidden, test.words)
	}
	if a.Reviews() != before {
		t.Errorf("the API server was asked %d times for what Vault refuses itself", a.Reviews()-before)
	}
	for name, token := range map[string]string{
		"signed by another cluster":     theirs.Token("shop", "web", nil),
		"with another account's claims": a.Token("shop", "web", map[string]any{"sub": "system:serviceaccount:shop:db"}),
		"not valid yet":                 a.Token("shop", "web", map[string]any{"nbf": time.Now().Add(2 * time.Minute).Unix()}),
	} {
		_, err := s.login("kubernetes", map[string]any{"role": "puller", "jwt": token})
		if status, _ := refusal(err); status != http.StatusForbidden {
			t.Errorf("a token %s: %v", name, err)
		}
	}
	// A role that names no audience has Vault ask for whatever the token is for.
	if _, err := s.login("kubernetes", map[string]any{"role": "puller", "jwt": a.Token("shop", "web", map[string]any{"aud": []string{"others"}})}); err != nil {
		t.Errorf("a token for somebody else, where the role has no audience: %v", err)
	}
	old := a.Token("shop", "web", nil)
	a.Delete("shop", "web")
	_, err = s.login("kubernetes", map[string]any{"role": "puller", "jwt": old})
	wantRefusal(t, err, http.StatusForbidden, "permission denied")
	if _, err := s.login("kubernetes", map[string]any{"role": "puller", "jwt": a.Token("shop", "web", nil)}); err != nil {
		t.Errorf("an account that is there again: %v", err)
	}
}

// Without a token of its own Vault has each token review itself, which needs the permission, and a token for the API server.
func TestKubernetesWithoutReviewer(t *testing.T) {
	s := New(t, Options{})
	a := s.Kubernetes("kubernetes", cloud.New(t).AddIssuer("https://issuer.example"))
	s.KubernetesRole("kubernetes", "any", nil)
	s.KubernetesRole("kubernetes", "vault", map[string]any{"audience": "vault"})
	s.must(s.write("auth/kubernetes/config", map[string]any{"kubernetes_host": a.Address(), "kubernetes_ca_cert": string(s.ca.pem), "disable_local_ca_jwt": true, "token_reviewer_jwt": ""}, nil))
	login := func(role string, claims map[string]any) int {
		_, err := s.login("kubernetes", map[string]any{"role": role, "jwt": a.Token("shop", "web", claims)})
		status, _ := refusal(err)
		return status
	}
	if got := login("any", nil); got != http.StatusForbidden {
		t.Errorf("an account that may not review: %d", got)
	}
	a.Delegate("shop", "web")
	if got := login("any", nil); got != 0 {
		t.Errorf("an account that may: %d", got)
	}
	if got := login("vault", map[string]any{"aud": []string{"vault"}}); got != http.StatusForbidden {
		t.Errorf("a token that the API server does not take: %d", got)
	}
}

// TestTheAPIServer asks it what Vault would not, having refused the token itself.
func TestTheAPIServer(t *testing.T) {
	c := cloud.New(t)
	s := New(t, Options{})
	a := s.Kubernetes("kubernetes", c.AddIssuer("https://issuer.example"))
	a.Token("shop", "web", nil)
	reviewer := a.Token("vault", "reviewer", nil)
	forged := (&APIServer{issuer: cloud.New(t).AddIssuer("https://issuer.example"), uids: a.uids}).Token("vault", "reviewer", nil)
	post := func(t *testing.T, path, bearer, body string) (status int, answer tokenReview) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.Address()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bearer)
		w, err := s.client.CloneConfig().HttpClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
		var raw struct{ Status json.RawMessage }
		if err := json.NewDecoder(w.Body).Decode(&raw); err != nil {
			t.Error(err)
		}
		_ = json.Unmarshal(raw.Status, &answer.Status) // of a refusal it is a text
		return w.StatusCode, answer
	}
	const reviews = "/apis/authentication.k8s.io/v1/tokenreviews"
	review := func(token string, audiences ...string) string {
		body, err := json.Marshal(tokenReview{Kind: "TokenReview", APIVersion: "authentication.k8s.io/v1", Spec: tokenReviewSpec{Token: token, Audiences: audiences}})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	pod := func(claims map[string]any) string { return a.Token("shop", "web", claims) }
	for name, test := range map[string]struct {
		path, bearer, body string
		status             int
		words              string // of the error; empty: it is authenticated
	}{
		"its own audience":         {reviews, reviewer, review(pod(nil)), 201, ""},
		"an audience asked for":    {reviews, reviewer, review(pod(map[string]any{"aud": []string{"a", "b"}}), "b", "c"), 201, ""},
		"another audience":         {reviews, reviewer, review(pod(map[string]any{"aud": []string{"a"}}), "b"), 201, "invalid for the target audiences"},
		"none asked for":           {reviews, reviewer, review(pod(map[string]any{"aud": []string{"a"}})), 201, "invalid for the target audiences"},
		"expired":                  {reviews, reviewer, review(pod(map[string]any{"exp": time.Now().Unix() - 1})), 201, "has expired"},
		"not valid yet":            {reviews, reviewer, review(pod(map[string]any{"nbf": time.Now().Unix() + 60})), 201, "not valid yet"},
		"another issuer's name":    {reviews, reviewer, review(pod(map[string]any{"iss": "https://other.example"})), 201, "another issuer"},
		"forged":                   {reviews, reviewer, review(forged), 201, "invalid bearer token"},
		"no token":                 {reviews, reviewer, review(""), 422, "-"},
		"no review":                {reviews, reviewer, "{", 400, "-"},
		"another kind":             {reviews, reviewer, `{"kind":"Pod"}`, 400, "-"},
		"another path":             {"/api/v1/pods", reviewer, "{}", 404, "-"},
		"nobody asks":              {reviews, "", review(pod(nil)), 401, "-"},
		"a forger asks":            {reviews, forged, review(pod(nil)), 401, "-"},
		"asked with another token": {reviews, a.Token("vault", "reviewer", map[string]any{"aud": []string{"vault"}}), review(pod(nil)), 401, "-"},
		"who may not asks":         {reviews, pod(nil), review(pod(nil)), 403, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := post(t, test.path, test.bearer, test.body)
			if status != test.status || answer.Status.Authenticated != (test.words == "") || test.words != "-" && !strings.Contains(answer.Status.Error, test.words) {
				t.Errorf("%d %+v", status, answer.Status)
			}
		})
	}
	_, answer := post(t, reviews, reviewer, review(pod(map[string]any{"aud": []string{"a", "b"}}), "b", "c"))
	if answer.Status.User == nil || answer.Status.User.Username != "system:serviceaccount:shop:web" || answer.Status.User.UID == "" || !slices.Contains(answer.Status.User.Groups, "system:serviceaccounts:shop") ||
		!slices.Equal(answer.Status.Audiences, []string{"b"}) {
		t.Errorf("%+v", answer.Status)
	}
}

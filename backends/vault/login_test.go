package vault

import (
	"slices"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// TestRoundTrips: a pull is a login, the question which engine it is, and the secret; the next one is the secret alone, and the login is given back at the end.
func TestRoundTrips(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	for range 2 {
		got := pull(t, b, backends.Request{Image: image})
		is(t, got, host, "robot", "pw-of-harbor")
		if got.Scope != backends.ScopeRegistry || got.Lease != "" || !got.Credentials[0].Expires.IsZero() || got.CacheDuration != nil {
			t.Errorf("%+v", got)
		}
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{
		"PUT auth/approle/login 200", "GET sys/internal/ui/mounts/secret/registries/harbor.example 200", "GET secret/data/registries/harbor.example 200",
		"GET secret/data/registries/harbor.example 200", "PUT auth/token/revoke-self 204",
	}
	if asked := r.asked(); !slices.Equal(asked, want) {
		t.Errorf("asked %q\nwant %q", asked, want)
	}
	token := r.front.Requests()[1].Token
	if _, err := r.As(token).Auth().Token().LookupSelf(); err == nil {
		t.Error("the login is still good")
	}
}

// TestLogins: each method with what it needs, accepted, and refused where something is not as the role wants it.
func TestLogins(t *testing.T) {
	for name, test := range map[string]struct {
		login   func(t *testing.T, r *rig, policy string) Auth
		token   func(t *testing.T, r *rig) backends.Secret
		refused func(t *testing.T, r *rig, a *Auth)
		kind    backends.Kind
		says    []string
	}{
		"a token": {
			login: func(_ *testing.T, r *rig, policy string) Auth {
				return Auth{TokenFile: r.file(r.Token([]string{policy}, nil))}
			},
			refused: func(_ *testing.T, r *rig, a *Auth) { a.TokenFile = r.file("hvs.unknown") },
			kind:    refused, says: []string{"Vault does not know the token", "give another one"},
		},
		"AppRole": {
			login:   func(_ *testing.T, r *rig, policy string) Auth { return r.appRole(nil, policy) },
			refused: func(_ *testing.T, r *rig, a *Auth) { a.SecretIDFile = r.file("00000000-0000-0000-0000-000000000000") },
			kind:    refused, says: []string{"the role ID or the secret ID is wrong", "secret-id` gives another one"},
		},
		"AppRole by a file, without a secret ID": {
			login: func(_ *testing.T, r *rig, policy string) Auth {
				roleID, _ := r.AppRole(r.name("approle"), "node", []string{policy}, map[string]any{"bind_secret_id": false, "token_bound_cidrs": []string{"127.0.0.1/32"}})
				return Auth{Method: MethodAppRole, Mount: r.name("approle"), RoleIDFile: r.file(roleID + "\n")}
			},
			refused: func(_ *testing.T, r *rig, a *Auth) { a.RoleIDFile = r.file("wrong") },
			kind:    refused, says: []string{"the role ID or the secret ID is wrong"},
		},
		"Kubernetes, the node's token": {
			login: func(t *testing.T, r *rig, policy string) Auth {
				api := r.Kubernetes(r.name("kubernetes"), cluster(t))
				r.KubernetesRole(r.name("kubernetes"), "puller", map[string]any{"bound_service_account_names": []string{"node"}, "token_policies": []string{policy}})
				return Auth{Method: MethodKubernetes, Mount: r.name("kubernetes"), Role: "puller", TokenFile: r.file(api.Token("kube-system", "node", nil))}
			},
			refused: func(_ *testing.T, _ *rig, a *Auth) { a.Role = "other" },
			kind:    refused, says: []string{"there is no such role", "vault list auth/kubernetes-"},
		},
		"JWT, the node's token": {
			login: func(t *testing.T, r *rig, policy string) Auth {
				issuer := cluster(t)
				r.JWT(r.name("jwt"), issuer)
				r.JWTRole(r.name("jwt"), "puller", map[string]any{"token_policies": []string{policy}})
				return Auth{Method: MethodJWT, Mount: r.name("jwt"), Role: "puller", TokenFile: r.file(string(podToken(issuer, "kube-system", "node")))}
			},
			refused: func(t *testing.T, r *rig, a *Auth) {
				other := cluster(t)
				other.Rotate()
				a.TokenFile = r.file(string(podToken(other, "kube-system", "node")))
			},
			kind: refused, says: []string{"signed by nobody whom the auth method trusts"},
		},
		"a certificate": {
			login: func(_ *testing.T, r *rig, policy string) Auth {
				r.Cert(r.name("cert"), r.name("node"), []string{policy})
				cert, key := r.ClientCertificate(r.name("node"))
				return Auth{Method: MethodCert, Mount: r.name("cert"), CertFile: r.file(string(cert)), KeyFile: r.file(string(key))}
			},
			refused: func(_ *testing.T, r *rig, a *Auth) {
				cert, key := r.ClientCertificate("somebody")
				a.CertFile, a.KeyFile = r.file(string(cert)), r.file(string(key))
			},
			kind: refused, says: []string{"the role is not for the client certificate", "vault list auth/cert-"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := use(t)
			r.KV1(r.name("kv"))
			r.Put(r.name("kv"), host, map[string]any{"login": "robot", "password": "pw"})
			auth := test.login(t, r, r.reads(r.name("kv")+"/*"))
			c := Config{Auth: auth, Secrets: []Secret{{Path: r.name("kv") + "/{host}"}}}
			is(t, pull(t, r.backend(c), backends.Request{Image: image}), host, "robot", "pw")
			test.refused(t, r, &c.Auth)
			_, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
			fails(t, err, test.kind, test.says...)
		})
	}
}

// TestPods: Vault's policy decides which pod pulls what, by the pod's own token.
func TestPods(t *testing.T) {
	for method, set := range map[Method]func(t *testing.T, r *rig, policy string) (audience string, token func(namespace string) backends.Secret){
		MethodJWT: func(t *testing.T, r *rig, policy string) (string, func(string) backends.Secret) {
			issuer := cluster(t)
			r.JWT(r.name("pods"), issuer)
			r.JWTRole(r.name("pods"), "puller", map[string]any{"token_policies": []string{policy}, "bound_claims_type": "glob", "bound_subject": "system:serviceaccount:team-a:builder"})
			return "vault", func(namespace string) backends.Secret { return podToken(issuer, namespace, "builder") }
		},
		MethodKubernetes: func(t *testing.T, r *rig, policy string) (string, func(string) backends.Secret) {
			api := r.Kubernetes(r.name("pods"), cluster(t))
			r.KubernetesRole(r.name("pods"), "puller", map[string]any{"token_policies": []string{policy}, "bound_service_account_namespaces": []string{"team-a"}})
			return "", func(namespace string) backends.Secret { return backends.Secret(api.Token(namespace, "builder", nil)) }
		},
	} {
		t.Run(string(method), func(t *testing.T) {
			t.Parallel()
			r := use(t)
			r.KV2(r.name("secret"))
			r.Put(r.name("secret"), "team-a/builder/red", map[string]any{"username": "a", "password": "pw-a"})
			_, token := set(t, r, r.reads(r.name("secret")+"/data/team-a/*"))
			c := Config{Auth: Auth{Method: method, Mount: r.name("pods"), Role: "puller"}, Secrets: []Secret{{Path: r.name("secret") + "/{namespace}/{serviceAccount}/{annotation:example.com/color}"}}}
			b := r.backend(c)
			annotations := map[string]string{"example.com/color": "red"}
			is(t, pull(t, b, backends.Request{Image: image, Token: token("team-a"), Annotations: annotations}), host, "a", "pw-a")
			_, err := b.Credentials(t.Context(), backends.Request{Image: image, Token: token("team-b"), Annotations: annotations})
			fails(t, err, refused, "the role is not for whom the token is of", "the pod's token is of team-b/builder")
			_, err = b.Credentials(t.Context(), backends.Request{Image: image})
			fails(t, err, refused, "the request carries no service account token")
			_, err = b.Credentials(t.Context(), backends.Request{Image: image, Token: token("team-a")})
			fails(t, err, refused, "has no annotation example.com/color")
		})
	}
}

// TestALoginThatWasRevoked is noticed, and there is another one.
func TestALoginThatWasRevoked(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	pull(t, b, backends.Request{Image: image})
	if err := r.API().Auth().Token().RevokeTree(r.front.Requests()[1].Token); err != nil {
		t.Fatal(err)
	}
	r.front.Forget()
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	want := []string{"GET secret/data/registries/harbor.example 403", "PUT auth/approle/login 200", "GET secret/data/registries/harbor.example 200"}
	if asked := r.asked(); !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
}

// TestALoginThatIsSaidToBeDenied: OpenBao, and older versions of Vault, say no more of a token that has ended.
func TestALoginThatIsSaidToBeDenied(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	pull(t, b, backends.Request{Image: image})
	r.front.Fail(vaultserver.Fault{Path: r.name("secret"), Status: 403, Body: `{"errors":["permission denied"]}`, Times: 1})
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	r.front.Fail(vaultserver.Fault{Path: r.name("secret"), Status: 403, Body: `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`, Times: 1})
	r.front.Forget()
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "permission denied")
	if asked := r.asked(); len(asked) != 1 {
		t.Errorf("a policy's refusal is asked about again: %q", asked)
	}
}

// TestALoginIsUsedForHalfOfItsLife, and given back then.
func TestALoginIsUsedForHalfOfItsLife(t *testing.T) {
	r := use(t)
	path, _ := r.kv()
	auth := r.appRole(map[string]any{"token_ttl": "1h"}, r.reads(r.name("secret")+"/data/*"))
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	now := time.Now()
	b.server.now = func() time.Time { return now }
	b.logins.Now = b.server.now
	pull(t, b, backends.Request{Image: image})
	now = now.Add(29 * time.Minute)
	pull(t, b, backends.Request{Image: image})
	now = now.Add(2 * time.Minute)
	pull(t, b, backends.Request{Image: image})
	b.tasks.Wait()
	logins, revoked := 0, 0
	for _, q := range r.front.Requests() {
		switch q.Path {
		case "auth/token/revoke-self":
			revoked++
		case "auth/" + r.name("approle") + "/login":
			logins++
		}
	}
	if logins != 2 || revoked != 1 {
		t.Errorf("%d logins, %d revoked: %q", logins, revoked, r.asked())
	}
}

// TestWhoHasNothingToPutAway is no Closer, so that no pull waits for that.
func TestWhoHasNothingToPutAway(t *testing.T) {
	r := use(t)
	path, appRole := r.kv()
	for _, test := range []struct {
		auth Auth
		want bool
	}{{appRole, true}, {Auth{TokenFile: r.file("hvs.x")}, false}, {Auth{Method: MethodNone}, false}} {
		served := r.backend(Config{Auth: test.auth, Secrets: []Secret{{Path: path}}}).Serving()
		_, closes := served.(backends.Closer)
		_, checks := served.(backends.Checker)
		_, renews := served.(backends.Renewer)
		_, revokes := served.(backends.Revoker)
		if closes != test.want || !checks || !renews || !revokes {
			t.Errorf("%s: closes %t, checks %t, renews %t, revokes %t", test.auth.Method, closes, checks, renews, revokes)
		}
	}
}

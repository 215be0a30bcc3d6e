//go:build unix

package kubelet

import (
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// What the tests of Google's registries pull from, and who may.
const (
	garHost    = "europe-west1-docker.pkg.dev"
	garProject = "my-project"
	garImage   = garHost + "/" + garProject + "/repo/app"
	garNode    = "node@my-project.iam.gserviceaccount.com"
	garPuller  = "puller@my-project.iam.gserviceaccount.com"
	garHuman   = "somebody@example.com"
)

var (
	garCluster = cloud.GKECluster{Project: garProject, ProjectNumber: "210987654321", Location: "europe-west1", Name: "cluster-1"}
	garPool    = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Issuer: ecrCluster}
	garAWS     = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "aws", Provider: "provider", AWSAccount: ecrAccount}
	garAzure   = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "azure", Provider: "provider"} // a tenant is made for each test
	garX509    = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "x509", Provider: "provider"}  // its trust anchors are made with the certificates
)

// newGoogleWorld is a world whose node pulls from Google.
func newGoogleWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.provider = object{
		"name": "gar", "matchImages": []string{"*-docker.pkg.dev", "gcr.io", "*-docker.pkg.dev.example", "registry.example"}, "inheritEnv": []string{"GOOGLE_*", "GCE_*", "AWS_*", "AZURE_*"},
	}
	w.annotate = func(email string) map[string]string {
		annotations := map[string]string{"iam.gke.io/enable-wi-image-pull": "true"}
		if email != "itself" {
			annotations["iam.gke.io/gcp-service-account"] = email
		}
		return annotations
	}
	w.AddGoogleRegistry(garHost, garProject, "repo", "other")
	w.AddServiceAccount(cloud.ServiceAccount{Email: garNode})
	w.AddServiceAccount(cloud.ServiceAccount{Email: garPuller})
	w.AddWorkloadPool(garPool)
	w.AddWorkloadPool(garAWS)
	return w
}

// machine is a node on Compute Engine; refused, one without a service account.
func (w *world) machine() {
	if w.refuse {
		w.env = append(w.env, w.GoogleInstance().Environ()...)
		return
	}
	w.env = append(w.env, w.GoogleInstance(cloud.ServiceAccount{Email: garNode}).Environ()...)
}

// key is a service account's key file; refused, one that has been deleted.
func (w *world) key(email string) string {
	file := w.file("key.json", string(w.ServiceAccountKeyFile(email)), 0o600)
	if w.refuse {
		w.DeleteServiceAccountKeys(email)
	}
	return file
}

// json writes a file of JSON below the node's home.
func (w *world) json(name string, content object) string {
	w.Helper()
	text, err := json.Marshal(content)
	if err != nil {
		w.Fatal(err)
	}
	return w.file(name, string(text), 0o600)
}

// impersonable lets one act as another, unless that is to be refused.
func (w *world) impersonable(by, whom string) {
	if !w.refuse {
		w.AllowImpersonation(by, whom)
	}
}

// nodeToken is the token of a node that garPool takes; refused, one for somebody else.
func (w *world) nodeToken() string {
	return w.issuer.Token(object{"aud": w.unless("https:"+garPool.Audience(), "https://other.example"), "sub": "node-1"})
}

// external is an external_account file, maybe with a service account to act as.
func (w *world) external(source object, as ...string) {
	file := object{
		"type": "external_account", "audience": garPool.Audience(), "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
		"token_url": "https://sts.googleapis.com/v1/token", "credential_source": source,
	}
	for _, account := range as {
		file["service_account_impersonation_url"] = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + account + ":generateAccessToken"
	}
	w.config["credentialsFile"] = w.json("external.json", file)
}

// podTokens is a provider's tokenAttributes for Google.
func podTokens(audience string) object {
	return object{
		"serviceAccountTokenAudience": audience, "cacheType": "Token", "requireServiceAccount": false,
		"optionalServiceAccountAnnotationKeys": []string{"iam.gke.io/enable-wi-image-pull", "iam.gke.io/gcp-service-account"},
	}
}

func garResource(p cloud.WorkloadProvider) string {
	return strings.TrimPrefix(p.Audience(), "//iam.googleapis.com/")
}

// garRows is the table of identities.
var garRows = []row{
	{"the machine", func(w *world) { w.machine() }, garNode, nil, []string{"the machine has no service account"}},

	{"a key in the environment", func(w *world) {
		w.env = []string{"GOOGLE_APPLICATION_CREDENTIALS=" + w.key(garPuller)}
	}, garPuller, nil, []string{"invalid_grant", "deleted, disabled or revoked"}},

	{"a key in the settings", func(w *world) { w.config["credentialsFile"] = w.key(garPuller) }, garPuller, nil, []string{"invalid_grant"}},

	{"gcloud's file", func(w *world) {
		w.file(".config/gcloud/application_default_credentials.json", string(w.AddGoogleUser(garHuman)), 0o600)
		if w.refuse {
			w.RevokeGoogleUser(garHuman)
		}
	}, garHuman, nil, []string{"invalid_grant", "revoked"}},

	{"a file that impersonates", func(w *world) {
		w.impersonable(garHuman, garPuller)
		w.config["credentialsFile"] = w.json("adc.json", object{
			"type": "impersonated_service_account", "source_credentials": json.RawMessage(w.AddGoogleUser(garHuman)),
			"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + garPuller + ":generateAccessToken",
		})
	}, garPuller, nil, []string{"PERMISSION_DENIED", "roles/iam.serviceAccountTokenCreator"}},

	{"an account that a key impersonates", func(w *world) {
		w.impersonable(garNode, garPuller)
		w.config = object{"credentialsFile": w.file("key.json", string(w.ServiceAccountKeyFile(garNode)), 0o600), "impersonate": garPuller}
	}, garPuller, nil, []string{"token of service account " + garPuller, "roles/iam.serviceAccountTokenCreator"}},

	{"another issuer's token", func(w *world) {
		w.config = object{"workloadIdentityProvider": garResource(garPool), "webIdentity": object{"audience": w.unless("https:"+garPool.Audience(), "https://other.example"), "file": object{"path": w.file("token", w.nodeToken(), 0o600)}}}
	}, garPool.Principal("node-1"), nil, []string{"invalid_grant", "workload-identity-pools providers describe"}},

	{"another issuer's token, with a condition", func(w *world) {
		provider := garPool
		provider.Condition = func(a cloud.Assertion) bool { return a.Text("repository_owner") == "acme" }
		w.AddWorkloadPool(provider)
		audience := "https:" + garPool.Audience()
		token := w.issuer.Token(object{"aud": audience, "sub": "node-1", "repository_owner": w.unless("acme", "other")})
		w.config = object{"workloadIdentityProvider": garResource(garPool), "webIdentity": object{"audience": audience, "file": object{"path": w.file("token", token, 0o600)}}}
	}, garPool.Principal("node-1"), nil, []string{"unauthorized_client", "the provider's attribute condition refuses it"}},

	{"a client certificate", func(w *world) {
		trusted := w.ClientCA("root")
		provider := garX509
		provider.TrustAnchors = []*x509.Certificate{trusted.Certificate}
		w.AddWorkloadPool(provider)
		issuing := trusted
		if w.refuse {
			issuing = w.ClientCA("root")
		}
		certificate, key := issuing.Issue("node-1", nil)
		w.env = []string{"GOOGLE_APPLICATION_CREDENTIALS=" + w.json("external.json", object{
			"type": "external_account", "audience": garX509.Audience(), "subject_token_type": "urn:ietf:params:oauth:token-type:mtls", "token_url": "https://sts.mtls.googleapis.com/v1/token",
			"credential_source": object{"certificate": object{"use_default_certificate_config": true}},
		})}
		w.json(".config/gcloud/certificate_config.json", object{"cert_configs": object{"workload": object{
			"cert_path": w.file("cert.pem", string(certificate), 0o644), "key_path": w.file("key.pem", string(key), 0o600),
		}}})
	}, garX509.Principal("node-1"), nil, []string{"sts.mtls.googleapis.com: invalid_grant", "its trust anchors"}},

	{"AWS", func(w *world) {
		keys := w.AddUser("arn:aws:iam::" + w.unless(ecrAccount, ecrOther) + ":user/node")
		w.env = append(keys.Environ(), "AWS_REGION=eu-west-1")
		w.config = object{"aws": true, "workloadIdentityProvider": garResource(garAWS)}
	}, strings.TrimSuffix(garAWS.Principal("x"), "x"), nil, []string{"exchange the AWS identity at Google's Security Token Service"}},

	{"one of the machine's other accounts", func(w *world) {
		accounts := []cloud.ServiceAccount{{Email: garNode}}
		if !w.refuse {
			accounts = append(accounts, cloud.ServiceAccount{Email: garPuller})
		}
		w.env = append(w.env, w.GoogleInstance(accounts...).Environ()...)
		w.config["serviceAccount"] = garPuller
	}, garPuller, nil, []string{garPuller, "attach it, or name another"}},

	{"a chain of accounts", func(w *world) {
		const gate = "gate@my-project.iam.gserviceaccount.com"
		w.AddServiceAccount(cloud.ServiceAccount{Email: gate})
		w.impersonable(garNode, gate)
		w.impersonable(gate, garPuller)
		w.env = append(w.env, w.GoogleInstance(cloud.ServiceAccount{Email: garNode}).Environ()...)
		w.config = object{"impersonate": garPuller, "delegates": []string{gate}}
	}, garPuller, nil, []string{"token of service account " + garPuller, "and each delegate on the next"}},

	{"Azure", func(w *world) {
		const app = "api://tenant/registry-pull"
		a := w.AzureInstance(cloud.ManagedIdentity{}, cloud.ManagedIdentity{})
		a.AddApplication(cloud.Application{URI: app})
		id := a.Identities()[1]
		pool := garAzure
		pool.Issuer, pool.AllowedAudiences = a.Issuer(false), []string{w.unless(app, "api://tenant/other")}
		w.AddWorkloadPool(pool)
		w.GrantReader(garProject, pool.Principal(id.ObjectID))
		w.env = proxied(a.Environ())
		w.config = object{"workloadIdentityProvider": garResource(pool), "webIdentity": object{"audience": app, "azureManagedIdentity": object{"clientID": id.ClientID}}}
	}, strings.TrimSuffix(garAzure.Principal("x"), "x"), nil, []string{"invalid_grant", "the pool's provider does not take it"}},

	{"an external account's file", func(w *world) {
		w.external(object{"file": w.file("token", w.nodeToken(), 0o600)})
	}, garPool.Principal("node-1"), nil, []string{"invalid_grant"}},

	{"an external account's URL, as a service account", func(w *world) {
		w.impersonable(garPool.Principal("node-1"), garPuller)
		token := w.issuer.Token(object{"aud": "https:" + garPool.Audience(), "sub": "node-1"})
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Who") == "node" {
				_ = json.NewEncoder(rw).Encode(object{"id_token": token})
			}
		}))
		w.Cleanup(server.Close)
		w.external(object{"url": server.URL, "headers": object{"X-Who": "node"}, "format": object{"type": "json", "subject_token_field_name": "id_token"}}, garPuller)
	}, garPuller, nil, []string{"PERMISSION_DENIED", "on the service account that the file impersonates"}},

	{"an external account's program", func(w *world) {
		w.external(object{"executable": object{"command": w.file("print-token", "#!/bin/sh\n"+
			`echo '{"version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:jwt", "id_token": "`+w.nodeToken()+`"}'`+"\n", 0o700)}})
	}, garPool.Principal("node-1"), nil, []string{"invalid_grant"}},

	{"a pod on GKE", func(w *world) {
		w.issuer = w.AddGKECluster(garCluster)
		w.tokens, w.accounts = podTokens(w.unless(garCluster.Pool(), "other.example")), map[string]string{"team-a/builder": "itself"}
	}, "", []pull{{garImage, builder, garCluster.Principal("team-a", "builder")}}, []string{"exchange the pod's service account token", "invalid_"}},

	{"a pod on GKE as a service account", func(w *world) {
		w.issuer = w.AddGKECluster(garCluster)
		w.impersonable(garCluster.Principal("team-a", "builder"), garPuller)
		w.tokens, w.accounts = podTokens(garCluster.Pool()), map[string]string{"team-a/builder": garPuller}
	}, "", []pull{{garImage, builder, garPuller}}, []string{"token of service account " + garPuller, "roles/iam.workloadIdentityUser"}},

	{"a pod of another cluster", func(w *world) {
		w.tokens, w.accounts = podTokens(w.unless("https:"+garPool.Audience(), "other.example")), map[string]string{"team-a/builder": "itself"}
		w.config["podWorkloadIdentityProvider"] = garResource(garPool)
	}, "", []pull{{garImage, builder, garPool.Principal("system:serviceaccount:team-a:builder")}}, []string{"the pool's provider does not take it"}},
}

// TestGARIdentities: with every identity, the kubelet's keyring has for the image exactly the credential with which it is pulled, and for images elsewhere none.
func TestGARIdentities(t *testing.T) {
	for _, r := range garRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newGoogleWorld(t)
			r.prepare(w)
			for _, reader := range []string{garNode, garPuller, garHuman, garPool.PrincipalSet(), garAWS.PrincipalSet(), garX509.PrincipalSet(), garCluster.Principal("team-a", "builder")} {
				w.GrantReader(garProject, reader)
			}
			w.start()
			p := r.all(garImage)[0]
			found := w.lookup(p.image, p.pod)
			if len(found) != 1 {
				t.Fatalf("%s: the kubelet has %d credentials\n%s", p.image, len(found), w.read("stderr"))
			}
			if err := w.Pull(p.image, found[0].Username, found[0].Password); err != nil {
				t.Errorf("pull %s: %v", p.image, err)
			}
			if principal, _, _, ok := w.AccessTokenOf(found[0].Password); !ok || !isAsker(p.asker, principal) {
				t.Errorf("a token of %q, want %s", principal, p.asker)
			}
			before := w.starts()
			if again := w.lookup(garHost+"/"+garProject+"/other/app", p.pod); len(again) != 1 || again[0] != found[0] || w.starts() != before {
				t.Errorf("another image of the registry: %d credentials after %d starts of the broker", len(again), w.starts()-before)
			}
			for _, elsewhere := range []string{"registry.example/team/app", garHost + ".example/team/app"} {
				if found := w.lookup(elsewhere, p.pod); len(found) != 0 {
					t.Errorf("%s: the kubelet has %d credentials", elsewhere, len(found))
				}
			}
			w.direct()
		})
	}
}

// TestGARIdentitiesRefused is the same where whoever asks is not trusted: there is no credential, and the broker says why.
func TestGARIdentitiesRefused(t *testing.T) {
	for _, r := range garRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newGoogleWorld(t)
			w.refuse = true
			r.prepare(w)
			w.start()
			p := r.all(garImage)[0]
			if found := w.lookup(p.image, p.pod); len(found) != 0 {
				t.Errorf("the kubelet has %d credentials", len(found))
			}
			stderr := w.read("stderr")
			for _, cause := range r.causes {
				if !strings.Contains(stderr, cause) {
					t.Errorf("the broker does not say %q:\n%s", cause, stderr)
				}
			}
			w.direct()
		})
	}
}

// TestGARProjects: each project's images are pulled with the service account that the settings name for it, and the kubelet keeps no answer for another's.
func TestGARProjects(t *testing.T) {
	const others = "other-project"
	w := newGoogleWorld(t)
	w.AddGoogleRegistry(garHost, others, "repo")
	w.AllowImpersonation(garNode, garPuller)
	w.env = append(w.env, w.GoogleInstance(cloud.ServiceAccount{Email: garNode}).Environ()...)
	w.config["serviceAccounts"] = []object{{"projects": []string{garProject}, "impersonate": garPuller}}
	w.GrantReader(garProject, garPuller)
	w.GrantReader(others, garNode)
	w.start()
	for _, p := range []pull{{garImage, pod{}, garPuller}, {garHost + "/" + others + "/repo/app", pod{}, garNode}, {garHost + "/" + garProject + "/other/app", pod{}, garPuller}} {
		found := w.lookup(p.image, p.pod)
		if len(found) != 1 {
			t.Fatalf("%s: the kubelet has %d credentials\n%s", p.image, len(found), w.read("stderr"))
		}
		if err := w.Pull(p.image, found[0].Username, found[0].Password); err != nil {
			t.Errorf("pull %s: %v", p.image, err)
		}
		if principal, _, _, ok := w.AccessTokenOf(found[0].Password); !ok || principal != p.asker {
			t.Errorf("%s: a token of %q, want %s", p.image, principal, p.asker)
		}
	}
}

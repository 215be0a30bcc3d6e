package peers

import (
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

func garRows() []row {
	server := tells("the metadata server", "metadata")
	tried := tells("what was tried", "GOOGLE_APPLICATION_CREDENTIALS.*application_default_credentials.json.*metadata")
	grant := tells("invalid_grant", "invalid_grant")
	revoked := tells("what it means", "deleted, disabled or revoked")
	return []row{
		garOn("a region's", garHost, garProject),
		garOn("a multi-region's", "us-docker.pkg.dev", garProject),
		garOn("a regional endpoint", "docker.europe-west1.rep.pkg.dev", garProject),
		garOn("Container Registry's", "gcr.io", garProject),
		garOn("Container Registry's", "eu.gcr.io", garProject),
		garOn("a domain's project", "europe-docker.pkg.dev", "example.com:my-project"),
		garOn("port named", garHost+":443", garProject),
		garElsewhere("not Google's", "registry.example"),
		garElsewhere("looks like it", garHost+".example"),
		garElsewhere("no registry of images", "europe-west1-npm.pkg.dev"),

		garAt(nodes, "metadata server", func(s *scene) { s.machine(garNode) }),
		garAt(nodes, "metadata server, a machine with the scope `devstorage.read_only` alone", func(s *scene) {
			s.machine(garNode).SetScopes("https://www.googleapis.com/auth/devstorage.read_only")
		}),
		garAt(nodes, "key file by GOOGLE_APPLICATION_CREDENTIALS", func(s *scene) { s.adc(s.ServiceAccountKeyFile(garPuller)) }).but(api, unasked),
		garAt(nodes, "a user's login (`authorized_user`) by GOOGLE_APPLICATION_CREDENTIALS", func(s *scene) { s.adc(s.AddGoogleUser(garHuman)) }),
		garAt(nodes, "a user's login where gcloud keeps it", func(s *scene) {
			s.write(".config/gcloud/application_default_credentials.json", string(s.AddGoogleUser(garHuman)), 0o600)
		}),
		garAt(nodes, "both a key file and a metadata server", func(s *scene) { s.machine(garNode); s.adc(s.ServiceAccountKeyFile(garPuller)) }).but(api, unasked),
		garAt(nodes, "`impersonated_service_account`", func(s *scene) { s.impersonating(); s.AllowImpersonation(garHuman, garPuller) }),
		garAt(nodes, "`external_account`, a token in a file", func(s *scene) {
			s.external(garPool, "urn:ietf:params:oauth:token-type:jwt", map[string]any{"file": s.write("token", s.outside(), 0o600)})
		}),
		garAt(nodes, "`external_account`, AWS, keys of the environment", func(s *scene) {
			s.external(garAWS, "urn:ietf:params:aws:token-type:aws4_request", map[string]any{
				"environment_id": "aws1", "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
			})
			s.add(append(s.keys("").Environ(), "AWS_REGION=eu-west-1")...)
		}),
		garAt(nodes, "`external_account`, a program", func(s *scene) { s.printsToken(0o755); s.add("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1") }),
		garAt(nodes, "`external_account`, a program that anybody on the node may change", func(s *scene) {
			s.printsToken(0o777)
			s.add("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1")
		}).fails(tells("which file", "bin/prints"), tells("what to do", "chmod")).but(result, checked),
		garAt(nodes, "none at all, on a machine outside Google", func(s *scene) { i := s.GoogleInstance(); i.Absent(); s.add(i.Environ()...) }).
			fails(tried, server).but(says, advises),
		garAt(nodes, "none at all, connections to a metadata server are refused", func(s *scene) { i := s.GoogleInstance(); i.Refuse(); s.add(i.Environ()...) }).
			fails(tried, server).but(says, advises),
		garAt(nodes, "a machine without a service account", func(s *scene) { s.machine() }).
			fails(server, tells("what to do", "attach one to the instance")).but(says, advises),

		garAt(troubles, "the key has been deleted", func(s *scene) {
			s.adc(s.ServiceAccountKeyFile(garPuller))
			s.DeleteServiceAccountKeys(garPuller)
		}).fails(grant, revoked).but(result, unnoticed),
		garAt(troubles, "the service account has been deleted", func(s *scene) {
			s.adc(s.ServiceAccountKeyFile(garPuller))
			s.DeleteServiceAccount(garPuller)
		}).fails(grant, revoked).but(result, unnoticed),
		garAt(troubles, "the user's login has been revoked", func(s *scene) {
			s.adc(s.AddGoogleUser(garHuman))
			s.RevokeGoogleUser(garHuman)
		}).fails(grant, revoked).but(says, advises),
		garAt(troubles, "who asks may not impersonate", func(s *scene) { s.impersonating() }).
			fails(tells("the code", "PERMISSION_DENIED"), tells("the role to grant", "roles/iam.serviceAccountTokenCreator")).but(says, advises),
		garAt(troubles, "the pool's provider is disabled", func(s *scene) {
			disabled := garPool
			disabled.Disabled = true
			s.external(disabled, "urn:ietf:params:oauth:token-type:jwt", map[string]any{"file": s.write("token", s.outside(), 0o600)})
		}).fails(tells("the code", "invalid_target")),
		garAt(troubles, "the token in the file has expired", func(s *scene) {
			token := s.AddIssuer(issuer).Token(map[string]any{
				"aud": "https:" + garPool.Audience(), "sub": "node-7", "iat": s.Now().Add(-2 * time.Hour).Unix(), "exp": s.Now().Add(-time.Hour).Unix(),
			})
			s.external(garPool, "urn:ietf:params:oauth:token-type:jwt", map[string]any{"file": s.write("token", token, 0o600)})
		}).fails(grant, tells("what to look at", "providers describe")).but(says, advises),
		garAt(troubles, "the file is no JSON", func(s *scene) { s.adc([]byte("{" + secret)) }).fails(tells("the variable", "GOOGLE_APPLICATION_CREDENTIALS"), keeps("the secret", secret)).but(says, advises),
		garAt(troubles, "the file is not there", func(s *scene) { s.add("GOOGLE_APPLICATION_CREDENTIALS=/nowhere/adc.json") }).fails(tells("the variable", "GOOGLE_APPLICATION_CREDENTIALS"), tells("which file", "/nowhere/adc.json"), tells("no such file", "no such file")).but(says, advises),
		garAt(troubles, "the metadata server's token is near its end", func(s *scene) { s.machine(garNode).SetTokenLife(40 * time.Second) }),
		garAt(troubles, "the metadata server answers 503 once", func(s *scene) {
			s.machine(garNode)
			s.Fail(cloud.Fault{Service: "google-metadata", Operation: "token", Times: 1, Status: 503})
		}),
		garAt(troubles, "the metadata server answers 503 always", func(s *scene) {
			s.timeout = "6s"
			s.machine(garNode)
			s.Fail(cloud.Fault{Service: "google-metadata", Operation: "token", Status: 503})
		}).fails(tells("the status", "503"), server).but(says, advises),
		garAt(troubles, "the metadata server does not answer", func(s *scene) {
			s.timeout, s.patience = "4s", 20*time.Second
			s.machine(garNode)
			s.Fail(cloud.Fault{Service: "google-metadata", Hang: true})
		}).fails(server, tells("who did not answer", "no answer in time")).but(result, googleTime),
		garAt(troubles, "the token endpoint answers 503 once", func(s *scene) {
			s.adc(s.AddGoogleUser(garHuman))
			s.Fail(cloud.Fault{Service: "google-oauth", Times: 1, Status: 503})
		}).but(result, again).but(registry, again).but(identity, again).but(scopes, again),
		garAt(troubles, "the token endpoint answers 503 always", func(s *scene) {
			s.adc(s.AddGoogleUser(garHuman))
			s.Fail(cloud.Fault{Service: "google-oauth", Status: 503})
		}).fails(tells("the status", "503")).but(says, advises),
		garAt(troubles, "the token endpoint throttles without end", func(s *scene) {
			s.timeout = "4s"
			s.adc(s.AddGoogleUser(garHuman))
			s.Fail(cloud.Fault{Service: "google-oauth"})
		}).fails(tells("the status", "429"), tells("throttled", "throttled")).but(says, advises),
		garAt(troubles, "the token endpoint does not answer", func(s *scene) {
			s.timeout, s.patience = "4s", 20*time.Second
			s.adc(s.AddGoogleUser(garHuman))
			s.Fail(cloud.Fault{Service: "google-oauth", Hang: true})
		}).fails(tells("who did not answer", "oauth2.googleapis.com.*no answer")).but(result, googleTime),
		garAt(troubles, "an error page with a secret in it", func(s *scene) {
			s.adc(s.AddGoogleUser(garHuman))
			s.Fail(cloud.Fault{Service: "google-oauth", Status: 400, Body: `{"error":"invalid_grant","error_description":"no: ` + secret + `"}`})
		}).fails(grant, keeps("the secret", secret)).but(says, noBodies),
		garAt(troubles, "the clock is 20 minutes ahead", func(s *scene) {
			s.adc(s.ServiceAccountKeyFile(garPuller))
			s.SetClockOffset(-20 * time.Minute)
		}).fails(grant, tells("the clock", "clock is 20m0s off")).but(result, skewNoticed),
		garAt(troubles, "a proxy's certificate is of an unknown CA", func(s *scene) {
			s.timeout = "4s"
			s.adc(s.AddGoogleUser(garHuman))
			s.add("SSL_CERT_FILE="+s.write("other.pem", otherCA(s), 0o600), "SSL_CERT_DIR="+s.TempDir())
		}).fails(tells("unknown authority", "certificate signed by unknown authority"), tells("SSL_CERT_FILE", "SSL_CERT_FILE")).but(says, advises),
		garAt(troubles, "the proxy is down", func(s *scene) {
			s.timeout = "4s"
			s.adc(s.AddGoogleUser(garHuman))
			s.add("HTTPS_PROXY=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1")
		}).fails(tells("proxy", "proxy"), tells("connection refused", "connection refused")),

		garAt(settings, "another of the machine's service accounts: `serviceAccount`", func(s *scene) {
			s.machine(garNode, garPuller)
			s.settings = map[string]any{"serviceAccount": garPuller}
		}).beyondPeers(),
		garAt(settings, "a service account for everything: `impersonate`", func(s *scene) {
			s.machine(garNode)
			s.AllowImpersonation(garNode, garPuller)
			s.settings = map[string]any{"impersonate": garPuller}
		}).beyondPeers(),
		garAt(settings, "a service account for the project: `serviceAccounts`", func(s *scene) {
			s.machine(garNode)
			s.AllowImpersonation(garNode, garPuller)
			s.settings = map[string]any{"serviceAccounts": []any{map[string]any{"projects": []string{garProject}, "impersonate": garPuller}}}
		}).beyondPeers(),
		garAt(settings, "an OIDC issuer outside Google: `webIdentity`", func(s *scene) {
			s.AddWorkloadPool(garPool)
			s.settings = map[string]any{
				"workloadIdentityProvider": garPool.Audience()[len("//iam.googleapis.com/"):],
				"webIdentity":              map[string]any{"audience": "https:" + garPool.Audience(), "file": map[string]any{"path": s.write("token", s.outside(), 0o600)}},
			}
		}).beyondPeers(),
		garAt(settings, "the node's AWS identity without a file: `aws`", func(s *scene) {
			s.AddWorkloadPool(garAWS)
			s.add(append(s.keys("").Environ(), "AWS_REGION=eu-west-1")...)
			s.settings = map[string]any{"aws": true, "workloadIdentityProvider": garAWS.Audience()[len("//iam.googleapis.com/"):]}
		}).beyondPeers(),
		garAt(settings, "a pod of a GKE cluster that asks to pull for itself", func(s *scene) {
			s.machine(garNode)
			s.gkePod(map[string]string{pullAnnotation: "true"})
		}).beyondPeers(),
		garAt(settings, "a pod of a GKE cluster as its Google service account", func(s *scene) {
			s.machine(garNode)
			s.gkePod(map[string]string{pullAnnotation: "true", garAnnotation: garPuller})
			s.AllowImpersonation(garCluster.Principal("shop", "cart"), garPuller)
		}).beyondPeers(),
		garAt(settings, "a pod of a GKE cluster that does not ask: the node's identity", func(s *scene) {
			s.machine(garNode)
			s.gkePod(nil)
		}).beyondPeers(),
		garAt(settings, "pods without a token get nothing: `podIdentity: Require`", func(s *scene) {
			s.machine(garNode)
			s.settings = map[string]any{"podIdentity": "Require"}
		}).fails(tells("what to do", "tokenAttributes")).beyondPeers(),
	}
}

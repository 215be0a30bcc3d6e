package peers

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// gcrHelper is Google's docker credential helper.
var gcrHelper = side{"docker-credential-gcr", func(s *scene) raw { return s.dockerHelper(path(program.GCRLogin)) }}

// newGoogleScene is a scene whose broker has a provider for Google's registries.
func newGoogleScene(t *testing.T) *scene {
	t.Helper()
	s := newScene(t)
	s.provider = map[string]any{"name": "gar", "backend": "gar", "inheritEnv": []string{"GOOGLE_*", "GCE_*", "AWS_*"}}
	s.AddServiceAccount(cloud.ServiceAccount{Email: garNode})
	s.AddServiceAccount(cloud.ServiceAccount{Email: garPuller})
	for _, reader := range []string{garNode, garPuller, garHuman, garPool.PrincipalSet(), garAWS.PrincipalSet(), garCluster.Principal("shop", "cart")} {
		s.GrantReader(garProject, reader)
	}
	return s
}

// What else tells answers about Google's registries apart. A docker credential helper gives neither auth keys nor cache hints, so that those are not compared.
const scopes field = "scopes" // of the token

var garOrder = []field{result, registry, identity, scopes, api, says}

// garOutcome is what an answer comes to.
func (s *scene) garOutcome(r raw, row row) outcome {
	s.Helper()
	o := s.outcome(r, row)
	delete(o, duration)
	delete(o, authKeys)
	if !row.beyond {
		delete(o, keyType)
	}
	for _, l := range r.auth {
		who, has, _, _ := s.AccessTokenOf(l.Password)
		o[identity] = who
		for i, scope := range has {
			has[i] = strings.TrimPrefix(scope, "https://www.googleapis.com/auth/")
		}
		o[scopes] = strings.Join(has, " ")
	}
	services := map[string]bool{}
	for _, request := range s.Requests() {
		if name, ok := strings.CutPrefix(request.Service, "google-"); ok {
			services[name] = true
		}
	}
	var names []string
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	o[api] = strings.Join(names, ", ")
	return o
}

func (r row) garCompare(t *testing.T) compared {
	t.Helper()
	put := func(sd side) outcome {
		s := newGoogleScene(t)
		r.given(s)
		s.ForgetRequests()
		answer := sd.ask(s)
		requests := s.Requests()
		o := s.garOutcome(answer, r)
		if testing.Verbose() {
			t.Logf("%s, %d ms: %v\n%s\n%+v", sd.name, answer.took.Milliseconds(), o, answer.said, requests)
		}
		return o
	}
	c := compared{row: r, broker: put(broker)}
	c.judgeBroker(t)
	if r.beyond {
		return c
	}
	c.helper = put(gcrHelper)
	for _, f := range garOrder {
		why := r.differs[f]
		declared := why != "" || r.differs[result] != "" && c.helper[result] != c.broker[result]
		// How far a token reaches differs wherever there are two.
		if f == scopes && c.helper[result] == "token" && c.broker[result] == "token" {
			declared = true
		}
		switch differ := c.helper[f] != c.broker[f]; {
		case differ && !declared:
			t.Errorf("%s differs, and no reason is given: the helper's is %q, the broker's %q", f, c.helper[f], c.broker[f])
		case !differ && why != "":
			t.Errorf("%s is %q for both, but is said to differ: %s", f, c.broker[f], why)
		}
	}
	return c
}

const garDocument = "../../docs/backends/gar-peer.md"

// garMark is where the part of the document begins that is made here; what stands before it is written by hand.
const garMark = "<!-- From here on made by test/peers: go test -run TestTheBrokerBesideGooglesHelper -update -->\n"

// TestTheBrokerBesideGooglesHelper asks the same of the broker and of docker-credential-gcr. What differs must be declared in the row, and what is declared must differ; the second part of the document
// must be what this makes of it (-update writes it).
func TestTheBrokerBesideGooglesHelper(t *testing.T) {
	results, ok := runAll(t, garRows(), row.garCompare)
	if !ok {
		return
	}
	committed, err := os.ReadFile(garDocument)
	if err != nil {
		t.Fatal(err)
	}
	byHand, made, ok := strings.Cut(string(committed), garMark)
	if !ok {
		t.Fatalf("%s has no line %q", garDocument, garMark)
	}
	text := garTables(results)
	if *flagUpdate {
		if err := os.WriteFile(garDocument, []byte(byHand+garMark+text), 0o644); err != nil {
			t.Fatal(err)
		}
		made = text
	}
	if made != text {
		t.Errorf("%s is not what comes of the comparison: run `go test -run %s -update` in test/peers, and read what has changed", garDocument, t.Name())
	}
}

// garTables is what the rows come to.
func garTables(all []compared) string {
	var b strings.Builder
	b.WriteString(`
# Beside docker-credential-gcr

The same requests, environment and cloud (a fake one, which verifies signatures and tokens, and knows scopes, accounts and roles, as Google does) were given to

- **helper**: ` + "`docker-credential-gcr`" + ` v2.2.1 of GoogleCloudPlatform, a docker credential helper, asked for the registry's host: it knows no pods and gives no cache hints. Its
  other sources, a login of its own in a browser and ` + "`gcloud`" + `, are for people at a terminal and have no part here;
- **broker**: the broker with one provider, ` + "`backend: gar`" + `, with no settings, unless the row says so.

A *token* is one with which the registry lets the image be pulled; *nothing* is an answer without credentials, with which the kubelet pulls anonymously; a *failure* is exit status 1 with a reason,
and *tells* what the reason names of that which its reader would want to know. *API* are Google's services that were asked. What no column mentions is equal.

One difference is everywhere:

- **scopes**: helper: `)
	fmt.Fprintf(&b, "`%s`; broker: `%s` (of what the machine has, where that is less, and what a user or a file granted). A node only pulls.\n", "devstorage.read_write", "cloud-platform.read-only")
	section := ""
	for _, c := range all {
		if c.section != section {
			section = c.section
			fmt.Fprintf(&b, "\n## %s\n\n| asked | helper | broker | why it differs |\n| --- | --- | --- | --- |\n", section)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.name, c.garCell(c.helper), c.garCell(c.broker), c.why())
	}
	return b.String()
}

// garCell is one side's part of a row.
func (c compared) garCell(o outcome) string {
	if o == nil {
		return "has no such setting"
	}
	parts := []string{o[result]}
	if o[result] == "token" && o[registry] != takes {
		parts[0] = "**token that is of no use**: " + o[registry]
	}
	for _, f := range append(garOrder[2:], keyType) {
		if shown := c.differs[f] != "" || f == says || c.beyond && (f == identity || f == keyType); o[f] != "" && shown {
			parts = append(parts, fmt.Sprintf("%s: %s", f, o[f]))
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), "|", "\\|")
}

const (
	garHost    = "europe-west1-docker.pkg.dev"
	garProject = "my-project"
	garNode    = "node@my-project.iam.gserviceaccount.com"
	garPuller  = "puller@my-project.iam.gserviceaccount.com"
	garHuman   = "somebody@example.com"
)

var (
	garCluster = cloud.GKECluster{Project: garProject, ProjectNumber: "210987654321", Location: "europe-west1", Name: "cluster-1"}
	garPool    = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Issuer: issuer}
	garAWS     = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "aws", Provider: "provider", AWSAccount: account}
)

// inGoogle asks for an image of a registry of Google's.
func (s *scene) inGoogle(host, project string) {
	name := strings.TrimSuffix(host, ":443")
	s.AddGoogleRegistry(name, project, "repo")
	s.image = host + "/" + strings.ReplaceAll(project, ":", "/") + "/repo/app"
	if project != garProject {
		s.GrantReader(project, garNode)
	}
}

// machine is an instance with the node's account, which the programs find.
func (s *scene) machine(accounts ...string) *cloud.GoogleInstance {
	var all []cloud.ServiceAccount
	for _, email := range accounts {
		all = append(all, cloud.ServiceAccount{Email: email})
	}
	i := s.GoogleInstance(all...)
	s.add(i.Environ()...)
	return i
}

// adc names a file of credentials.
func (s *scene) adc(content []byte) {
	s.add("GOOGLE_APPLICATION_CREDENTIALS=" + s.write("adc.json", string(content), 0o600))
}

// impersonating is a file of a user who impersonates the puller.
func (s *scene) impersonating() {
	s.adc([]byte(encode(s.T, map[string]any{
		"type": "impersonated_service_account", "source_credentials": json.RawMessage(s.AddGoogleUser(garHuman)),
		"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + garPuller + ":generateAccessToken",
	})))
}

// external is a file for a workload identity pool.
func (s *scene) external(p cloud.WorkloadProvider, kind string, source any) {
	s.AddWorkloadPool(p)
	s.adc([]byte(encode(s.T, map[string]any{
		"type": "external_account", "audience": p.Audience(), "subject_token_type": kind, "token_url": "https://sts.googleapis.com/v1/token", "credential_source": source,
	})))
}

// outside is a token of an issuer outside Google.
func (s *scene) outside() string {
	return s.AddIssuer(issuer).Token(map[string]any{"aud": "https:" + garPool.Audience(), "sub": "node-7"})
}

// printsToken is a program that prints such a token, a file with the given mode.
func (s *scene) printsToken(mode os.FileMode) {
	answer := encode(s.T, map[string]any{
		"version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:jwt", "id_token": s.outside(), "expiration_time": time.Now().Add(time.Hour).Unix(),
	})
	file := s.write("bin/prints", "#!/bin/sh\nprintf '%s' '"+answer+"'\n", mode)
	s.external(garPool, "urn:ietf:params:oauth:token-type:jwt", map[string]any{"executable": map[string]any{"command": file, "timeout_millis": 5000}})
}

// gkePod gives the request the token of a pod of a cluster, and the provider what it takes to see it.
func (s *scene) gkePod(annotations map[string]string) {
	s.token = s.AddGKECluster(garCluster).Token(map[string]any{
		"aud": []string{garCluster.Pool()}, "sub": subject, "kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "1"}},
	})
	s.annotations = annotations
	s.provider["tokenAttributes"] = map[string]any{
		"serviceAccountTokenAudience": garCluster.Pool(), "optionalServiceAccountAnnotationKeys": []string{pullAnnotation, garAnnotation},
	}
}

const (
	pullAnnotation = "iam.gke.io/enable-wi-image-pull"
	garAnnotation  = "iam.gke.io/gcp-service-account"
)

// garAt is a row about an image of the usual registry.
func garAt(section, name string, given func(*scene)) row {
	return row{section: section, name: name, want: "token", given: func(s *scene) { s.inGoogle(garHost, garProject); given(s) }}
}

// garOn is a row about a host, asked by a machine.
func garOn(name, host, project string) row {
	return row{section: hosts, name: fmt.Sprintf("%s: %#q", name, host), want: "token", given: func(s *scene) {
		s.inGoogle(host, project)
		s.machine(garNode)
	}}
}

// garElsewhere is a row about a host that is none of Google's registries.
func garElsewhere(name, host string) row {
	return row{section: hosts, name: fmt.Sprintf("%s: %#q", name, host), want: "nothing", given: func(s *scene) {
		s.image = host + "/team/app"
		s.machine(garNode)
	}}.but(result, googlesOwn)
}

// Reasons that more than one row has.
const (
	googlesOwn  reason = "a token is worth something to whoever gets it: it is given to Google's registries and to nobody else. The helper answers for whatever it is asked for"
	unasked     reason = "the helper signs a token with the key itself, and nobody is asked, so that nobody notices a key that is deleted"
	unnoticed   reason = "a key that Google no longer knows is noticed before the pull, and said"
	skewNoticed reason = "a clock that is wrong is noticed before the pull, and said"
	googleTime  reason = "the answer comes within the provider's timeout (4 s here); the helper goes on for more than 20 s"
	again       reason = "a moment's trouble is no failure: Google is asked again, twice at most"
)

package gar

import (
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

const aProvider = "projects/123456789012/locations/global/workloadIdentityPools/pool/providers/provider"

func TestSettingsThatAreRight(t *testing.T) {
	for name, c := range map[string]Config{
		"none":               {},
		"a file":             {CredentialsFile: "/etc/google/key.json"},
		"a service account":  {ServiceAccount: "puller@my-project.iam.gserviceaccount.com"},
		"an alias":           {ServiceAccount: "default"},
		"a number's account": {ServiceAccount: "123456789012-compute@developer.gserviceaccount.com"},
		"another issuer":     {WebIdentity: webidentity.Config{File: &webidentity.File{Path: "/run/token"}}, WorkloadIdentityProvider: aProvider},
		"AWS":                {AWS: true, WorkloadIdentityProvider: aProvider},
		"an impersonation":   {Impersonate: "puller@my-project.iam.gserviceaccount.com", Delegates: []string{"via@other-project.iam.gserviceaccount.com"}},
		"by project":         {ServiceAccounts: []ProjectAccount{{Projects: []string{"my-project", "example.com:my-project"}, Impersonate: "a@my-project.iam.gserviceaccount.com"}}},
		"pods":               {PodIdentity: settings.PodIdentityRequire, PodWorkloadIdentityProvider: aProvider},
		"no pods":            {PodIdentity: settings.PodIdentityOff},
		"a universe":         {Hosts: []string{"u-france-east1-docker.s3nsregistry.fr", "*-docker.s3nsregistry.fr"}, UniverseDomain: "s3nsapis.fr"},
		"a proxy":            {Proxy: "http://user:password@proxy.example:3128"},
	} {
		if _, err := New(t.Context(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettingsThatAreWrong(t *testing.T) {
	file := webidentity.Config{File: &webidentity.File{Path: "/run/token"}}
	for name, test := range map[string]struct {
		c    Config
		want string
	}{
		"a relative file":          {Config{CredentialsFile: "key.json"}, "credentialsFile: want an absolute path"},
		"no account":               {Config{ServiceAccount: "Puller/../x"}, "serviceAccount: want"},
		"two identities":           {Config{CredentialsFile: "/key.json", ServiceAccount: "default"}, "serviceAccount: the node has one identity, and credentialsFile names one already"},
		"AWS and a token":          {Config{AWS: true, WebIdentity: file, WorkloadIdentityProvider: aProvider}, "webIdentity: the node has one identity, and aws names one already"},
		"AWS without a provider":   {Config{AWS: true}, "workloadIdentityProvider: aws needs"},
		"a token of AWS's":         {Config{WebIdentity: webidentity.Config{AWS: &webidentity.AWS{}}, WorkloadIdentityProvider: aProvider}, "webIdentity.aws: this backend does not take it: set aws: true, and no webIdentity"},
		"a token without one":      {Config{WebIdentity: file}, "workloadIdentityProvider: webIdentity needs"},
		"a provider for nothing":   {Config{WorkloadIdentityProvider: aProvider}, "set webIdentity or aws"},
		"a provider with a name":   {Config{AWS: true, WorkloadIdentityProvider: strings.Replace(aProvider, "123456789012", "my-project", 1)}, "with the number of the project"},
		"a pod's provider":         {Config{PodWorkloadIdentityProvider: "//iam.googleapis.com/" + aProvider}, "podWorkloadIdentityProvider: want"},
		"a token's settings":       {Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: "token"}}, WorkloadIdentityProvider: aProvider}, "webIdentity.file.path"},
		"nobody to impersonate":    {Config{Delegates: []string{"via@my-project.iam.gserviceaccount.com"}}, "impersonate: want"},
		"an impersonated path":     {Config{Impersonate: "a@b.example/../c"}, "impersonate: want"},
		"a delegate's path":        {Config{Impersonate: "a@b.example", Delegates: []string{"x"}}, "delegates[0]: want"},
		"an account of no project": {Config{ServiceAccounts: []ProjectAccount{{Impersonate: "a@b.example"}}}, "serviceAccounts[0].projects: want"},
		"a project without one":    {Config{ServiceAccounts: []ProjectAccount{{Projects: []string{"my-project"}}}}, "serviceAccounts[0].impersonate: want"},
		"no project":               {Config{ServiceAccounts: []ProjectAccount{{Projects: []string{"My_Project"}, Impersonate: "a@b.example"}}}, "serviceAccounts[0].projects[0]: want"},
		"a project twice": {
			Config{ServiceAccounts: []ProjectAccount{{Projects: []string{"my-project"}, Impersonate: "a@b.example"}, {Projects: []string{"my-project"}, Impersonate: "c@b.example"}}},
			"serviceAccounts[1].projects[0]: project my-project has a service account already, by serviceAccounts[0].projects[0]",
		},
		"a host that is a domain": {Config{Hosts: []string{"*.example"}}, "hosts[0]: want"},
		"a host with two *":       {Config{Hosts: []string{"a.*.registry.example"}}, "hosts[0]: want"},
		"hosts of no universe":    {Config{Hosts: []string{"*-docker.s3nsregistry.fr"}}, "universeDomain: want the domain of the APIs"},
		"no universe":             {Config{UniverseDomain: "https://x"}, "universeDomain: want"},
		"no proxy":                {Config{Proxy: "proxy:secret"}, "proxy: want"},
		"pods, and yet not":       {Config{PodIdentity: settings.PodIdentityOff, PodWorkloadIdentityProvider: aProvider}, "podWorkloadIdentityProvider: it takes pods' tokens, and podIdentity is Off"},
		"no way to use pods":      {Config{PodIdentity: "prefer"}, "podIdentity: want"},
	} {
		_, err := New(t.Context(), test.c)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %s", name, err, test.want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: it tells a secret: %v", name, err)
		}
	}
}

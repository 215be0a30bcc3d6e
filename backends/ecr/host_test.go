package ecr

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
)

func TestParseHost(t *testing.T) {
	const account = "123456789012"
	private := func(region string) registry { return registry{account: account, region: region} }
	for name, want := range map[string]registry{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com":                    private("eu-west-1"),
		"123456789012.dkr.ecr.us-gov-west-1.amazonaws.com":                private("us-gov-west-1"),
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com:443":                private("eu-west-1"),
		"123456789012.DKR.ECR.eu-west-1.AmazonAWS.com":                    private("eu-west-1"),
		"123456789012.dkr.ecr-fips.us-east-1.amazonaws.com":               {account: account, region: "us-east-1", fips: true},
		"123456789012.dkr-ecr.us-west-2.on.aws":                           {account: account, region: "us-west-2", dualStack: true},
		"123456789012.dkr-ecr-fips.us-gov-east-1.on.aws":                  {account: account, region: "us-gov-east-1", dualStack: true, fips: true},
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn":                private("cn-north-1"),
		"123456789012.dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn": {account: account, region: "cn-northwest-1", dualStack: true},
		"123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu":                private("eusc-de-east-1"),
		"123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov":                   private("us-iso-east-1"),
		"123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov":               private("us-isob-east-1"),
		"123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk":              private("eu-isoe-west-1"),
		"123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov":             private("us-isof-south-1"),
		"123456789012.dkr.ecr.xx-new-1.amazonaws.example":                 {account: account, region: "xx-new-1", suffix: "amazonaws.example"},
		"123456789012.dkr.ecr.us-east-1.localhost.localstack.cloud:4566":  {account: account, region: "us-east-1", suffix: "localhost.localstack.cloud:4566"},
		"public.ecr.aws":         {region: "us-east-1", public: true},
		"ecr-public.aws.com":     {region: "us-east-1", public: true, dualStack: true},
		"public.ecr.aws:443":     {region: "us-east-1", public: true},
		"ecr-public.aws.com:443": {region: "us-east-1", public: true, dualStack: true},
	} {
		want.host = name
		got, ok := parseHost(backends.Image(name+"/team/app"), []string{"amazonaws.example", "localhost.localstack.cloud:4566"})
		if !ok {
			t.Errorf("%s is not taken for a registry", name)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(registry{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestForeignHosts: a token given for one of these would go to somebody else.
func TestForeignHosts(t *testing.T) {
	for _, host := range []string{
		"", "registry.example", "amazonaws.com", "ecr.eu-west-1.amazonaws.com", "dkr.ecr.eu-west-1.amazonaws.com",
		"12345678901.dkr.ecr.eu-west-1.amazonaws.com", "1234567890123.dkr.ecr.eu-west-1.amazonaws.com", "a23456789012.dkr.ecr.eu-west-1.amazonaws.com",
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example", "123456789012.dkr.ecr.eu-west-1.evil-amazonaws.com", "123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000",
		"123456789012.dkr.ecr.eu-west-1.evil.example.amazonaws.com", "evil.123456789012.dkr.ecr.eu-west-1.amazonaws.com", "123456789012.dkr.ecr..amazonaws.com",
		"123456789012.dkr_ecr.eu-west-1.amazonaws.com", "123456789012xdkr.ecr.eu-west-1.amazonaws.com", "123456789012.dkr.ecr-fips2.us-east-1.amazonaws.com",
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com",     // China's regions are not under this domain,
		"123456789012.dkr.ecr.us-east-1.amazonaws.com.cn",   // nor others under China's,
		"123456789012.dkr.ecr.us-iso-east-1.amazonaws.com",  // nor the isolated
		"123456789012.dkr.ecr.us-isob-east-1.c2s.ic.gov",    // in one another's
		"123456789012.dkr.ecr.us-gov-west-1.amazonaws.eu",   //
		"123456789012.dkr.ecr.eusc-de-east-1.amazonaws.com", //
		"public.ecr.aws.evil.example", "evilpublic.ecr.aws", "public.ecr.aws:5000", "ecr.aws",
	} {
		if got, ok := parseHost(backends.Image(host+"/app"), nil); ok {
			t.Errorf("%q is taken for %+v", host, got)
		}
	}
}

func TestSessionName(t *testing.T) {
	long := "team-with-a-long-name.service-account-whose-name-goes-on-and-on-and-on"
	for in, want := range map[string]string{
		"team-a.builder":                       "team-a.builder",
		"":                                     defaultSessionName,
		"system:serviceaccount:team-a:builder": "system-serviceaccount-team-a-builder-0f5f6a8d3d1c",
		"x":                                    "x-2d711642b726",
		long:                                   long[:51] + "-",
	} {
		got := sessionName(in)
		if !validSessionName(got) {
			t.Errorf("sessionName(%q) = %q, which STS does not take", in, got)
		}
		if len(want) < 40 && want[:min(len(want), 20)] != got[:min(len(got), 20)] || len(got) > maxSessionName {
			t.Errorf("sessionName(%q) = %q", in, got)
		}
	}
	if sessionName(long) == sessionName(long+"x") {
		t.Error("names that begin alike become one")
	}
	if sessionName("a:b") == sessionName("a/b") {
		t.Error("names that differ in a character that STS does not take become one")
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add("123456789012.dkr.ecr.eu-west-1.amazonaws.com")
	f.Add("public.ecr.aws:443")
	f.Fuzz(func(t *testing.T, host string) {
		r, ok := parseHost(backends.Image(host), nil)
		if !ok {
			return
		}
		if r.host != backends.Image(host).Host() || r.region == "" || r.public == (r.account != "") {
			t.Errorf("%q: %+v", host, r)
		}
	})
}

package ecr

import (
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
)

// registry is what a registry's host name says of it.
type registry struct {
	// host is as it stands in the image, with its port: the auth key.
	host    string
	account string // 12 digits; empty for ECR Public
	region  string // of the API that gives the token
	public  bool
	// fips and dualStack: the kind of the endpoint, which is that of the host.
	fips, dualStack bool
	// suffix is the domain, if it is one that the SDK does not know (registrySuffixes).
	suffix string
}

// publicRegion is the only one in which ECR Public's API is served.
const publicRegion = "us-east-1"

// publicHosts are those of ECR Public; the value says whether it is the dual-stack one (Amazon ECR Public user guide, "Making requests to Amazon ECR Public registries").
var publicHosts = map[string]bool{"public.ecr.aws": false, "ecr-public.aws.com": true}

// domain is one under which AWS serves private registries.
type domain struct {
	suffix    string
	dualStack bool
	// regions is what the names of the regions begin with whose registries have this domain; empty: any that no other domain claims.
	regions string
}

// Regions of one partition never have registries under the domain of another: a host that mixes them is nobody's, and must not be given a token.
// The beginnings follow the SDK's own partitions (internal/endpoints/awsrulesfn), whatever region comes later.
var domains = []domain{
	{"amazonaws.com", false, ""}, // commercial and GovCloud
	{"on.aws", true, ""},
	{"amazonaws.com.cn", false, "cn-"},
	{"on.amazonwebservices.com.cn", true, "cn-"},
	{"amazonaws.eu", false, "eusc-"},
	{"c2s.ic.gov", false, "us-iso-"},
	{"sc2s.sgov.gov", false, "us-isob-"},
	{"cloud.adc-e.uk", false, "eu-isoe-"},
	{"csp.hci.ic.gov", false, "us-isof-"},
}

// serves reports whether registries of the region have this domain.
func (d domain) serves(region string) bool {
	if d.regions != "" {
		return strings.HasPrefix(region, d.regions)
	}
	return !slices.ContainsFunc(domains, func(other domain) bool { return other.regions != "" && strings.HasPrefix(region, other.regions) })
}

// splitHost takes the name of a private registry apart: account ".dkr.ecr" or ".dkr-ecr", "-fips" or nothing, "." region "." domain.
func splitHost(name string) (account string, fips bool, region, domain string, ok bool) {
	account, rest, _ := strings.Cut(name, ".")
	kind, rest, _ := strings.Cut(strings.Replace(rest, "dkr.ecr", "dkr-ecr", 1), ".")
	region, domain, _ = strings.Cut(rest, ".")
	ok = (kind == "dkr-ecr" || kind == "dkr-ecr-fips") && validAccount(account) && validRegion(region) && domain != ""
	return account, kind == "dkr-ecr-fips", region, domain, ok
}

// parseHost tells which registry the image belongs to; false: none of ECR's. Suffixes are further domains of private registries.
func parseHost(image backends.Image, suffixes []string) (registry, bool) {
	host := image.Host()
	name := strings.ToLower(host)
	r := registry{host: host}
	plain := strings.TrimSuffix(name, ":443")
	if dualStack, ok := publicHosts[plain]; ok {
		r.public, r.dualStack, r.region = true, dualStack, publicRegion
		return r, true
	}
	var suffix string
	var ok bool
	if r.account, r.fips, r.region, suffix, ok = splitHost(name); !ok {
		return registry{}, false
	}
	if slices.Contains(suffixes, suffix) {
		r.suffix = suffix
		return r, true
	}
	suffix = strings.TrimSuffix(suffix, ":443")
	for _, d := range domains {
		if d.suffix == suffix && d.serves(r.region) {
			r.dualStack = d.dualStack
			return r, true
		}
	}
	return registry{}, false
}

// fipsRegions are those where AWS documents FIPS endpoints of ECR (AWS General Reference, "Amazon ECR endpoints and quotas"). The SDK makes up names for the others.
var fipsRegions = []string{"us-east-1", "us-east-2", "us-west-1", "us-west-2", "us-gov-east-1", "us-gov-west-1"}

func documentsFIPS(region string) bool { return slices.Contains(fipsRegions, region) }

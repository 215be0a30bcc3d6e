package cloud

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// partition is a part of AWS with identities of its own. The names are those of the SDK's endpoint rules (internal/endpoints/awsrulesfn/partitions.json).
type partition struct {
	name              string
	suffix, dualStack string // of API endpoints
	regions           *regexp.Regexp
	fipsRegions       []string // those with FIPS endpoints for ECR: https://docs.aws.amazon.com/general/latest/gr/ecr.html
	stsFIPS           bool     // whether STS has FIPS names of its own in them; GovCloud's plain names are FIPS: https://docs.aws.amazon.com/general/latest/gr/sts.html
}

func partitions() []partition {
	return []partition{
		{
			name: "aws", suffix: "amazonaws.com", dualStack: "api.aws", regions: regexp.MustCompile(`^(us|eu|ap|sa|ca|me|af|il|mx)-\w+-\d+$`),
			fipsRegions: []string{"us-east-1", "us-east-2", "us-west-1", "us-west-2"}, stsFIPS: true,
		},
		{name: "aws-cn", suffix: "amazonaws.com.cn", dualStack: "api.amazonwebservices.com.cn", regions: regexp.MustCompile(`^cn-\w+-\d+$`)},
		{
			name: "aws-us-gov", suffix: "amazonaws.com", dualStack: "api.aws", regions: regexp.MustCompile(`^us-gov-\w+-\d+$`),
			fipsRegions: []string{"us-gov-east-1", "us-gov-west-1"},
		},
		{name: "aws-eusc", suffix: "amazonaws.eu", dualStack: "api.amazonwebservices.eu", regions: regexp.MustCompile(`^eusc-de-\w+-\d+$`)},
		{name: "aws-iso", suffix: "c2s.ic.gov", dualStack: "api.aws.ic.gov", regions: regexp.MustCompile(`^us-iso-\w+-\d+$`)},
		{name: "aws-iso-b", suffix: "sc2s.sgov.gov", dualStack: "api.aws.scloud", regions: regexp.MustCompile(`^us-isob-\w+-\d+$`)},
		{name: "aws-iso-e", suffix: "cloud.adc-e.uk", dualStack: "api.cloud-aws.adc-e.uk", regions: regexp.MustCompile(`^eu-isoe-\w+-\d+$`)},
		{name: "aws-iso-f", suffix: "csp.hci.ic.gov", dualStack: "api.aws.hci.ic.gov", regions: regexp.MustCompile(`^us-isof-\w+-\d+$`)},
	}
}

// partitionOf is the partition that a region is in; a region that no one has heard of is in the first, as the SDKs take it.
func partitionOf(region string) partition {
	for _, p := range partitions() {
		if p.regions.MatchString(region) {
			return p
		}
	}
	return partitions()[0]
}

// endpoint is a place where an AWS API answers.
type endpoint struct {
	service   string // as in a credential scope: "sts", "ecr", "ecr-public"
	region    string
	partition string
}

// awsEndpoint says which API answers under a host name. No other name of AWS exists; in particular there are no FIPS names but those that AWS documents.
func awsEndpoint(host string) (endpoint, bool) {
	if host == "sts.amazonaws.com" {
		return endpoint{"sts", "us-east-1", "aws"}, true
	}
	for _, p := range partitions() {
		for _, dual := range []bool{false, true} {
			suffix := p.suffix
			if dual {
				suffix = p.dualStack
			}
			rest, found := strings.CutSuffix(host, "."+suffix)
			dot := strings.LastIndexByte(rest, '.')
			if !found || dot < 0 || !p.regions.MatchString(rest[dot+1:]) {
				continue
			}
			name, region := rest[:dot], rest[dot+1:]
			if service := p.serviceNamed(name, region, dual); service != "" {
				return endpoint{service, region, p.name}, true
			}
		}
	}
	return endpoint{}, false
}

// serviceNamed says which service a host name's first labels mean; "" where there is none.
func (p partition) serviceNamed(name, region string, dual bool) string {
	fips := slices.Contains(p.fipsRegions, region)
	switch name {
	case "sts":
		return "sts"
	case "sts-fips":
		if fips && (p.stsFIPS || dual) {
			return "sts"
		}
	case "ecr":
		return "ecr"
	case "api.ecr":
		if !dual {
			return "ecr"
		}
	case "ecr-fips":
		if fips {
			return "ecr"
		}
	case "api.ecr-fips":
		if fips && !dual {
			return "ecr"
		}
	case "ecr-public":
		if region == "us-east-1" {
			return "ecr-public"
		}
	case "api.ecr-public":
		if region == "us-east-1" && !dual {
			return "ecr-public"
		}
	case "portal.sso":
		if !dual {
			return "sso"
		}
	}
	return ""
}

// awsHandler is the API at an endpoint.
func (c *Cloud) awsHandler(e endpoint) http.Handler {
	switch e.service {
	case "sts":
		return c.logged("sts", c.stsAPI(e))
	case "ecr":
		return c.logged("ecr", c.jsonAPI(e, "AmazonEC2ContainerRegistry_V20150921", c.ecrOperations()))
	case "ecr-public":
		return c.logged("ecr-public", c.jsonAPI(e, "SpencerFrontendService", c.ecrPublicOperations()))
	case "sso":
		return c.logged("sso", c.ssoAPI(e))
	default:
		return nil
	}
}

// AddEndpoint lets a service ("sts", "ecr" or "ecr-public") of a region answer under one more host name, as a VPC endpoint does, or a region that is not known yet.
func (c *Cloud) AddEndpoint(host, service, region string) {
	h := c.awsHandler(endpoint{service, region, partitionOf(region).name})
	c.route(func(name string) http.Handler {
		if name == strings.ToLower(host) {
			return h
		}
		return nil
	})
}

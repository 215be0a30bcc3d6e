package peers

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// row is one line of the comparison.
type row struct {
	section string
	// name says what is asked, and in which surroundings.
	name string
	// given prepares a scene: the cloud, the request, the environment. It is called for each side anew, in a cloud of its own.
	given func(*scene)
	// want is the broker's result.
	want string
	// beyond: it takes settings, which the peers do not have.
	beyond bool
	// tells are the facts that an error ought to tell its reader.
	tells []fact
	// differs are the differences between the official provider and the broker, and why each is meant. One that is not here fails the test, as does one that is here and is none.
	differs map[field]reason
	// helper says why the ECR helper's result, or what the registry makes of it, is not the broker's. It is a docker credential helper, without pods and cache hints, so only that is compared.
	helper reason
	// noHelper: it cannot be asked this.
	noHelper bool
}

// fact is something that a message tells, and how one sees it there.
type fact struct {
	name string
	sign *regexp.Regexp
	// never: it must not be told.
	never bool
}

func tells(name, sign string) fact { return fact{name, regexp.MustCompile(sign), false} }

func keeps(name, sign string) fact { return fact{name, regexp.MustCompile(sign), true} }

// reason is why a difference is meant.
type reason string

// everywhere are differences that hold wherever there is a token.
var everywhere = map[field]reason{
	duration: "A token is good for all of its life, so half as many are asked for",
}

const (
	account   = "123456789012"
	repo      = "team/app"
	other     = "210987654321"
	otherHost = other + ".dkr.ecr.eu-west-1.amazonaws.com"
	plain     = account + ".dkr.ecr.eu-west-1.amazonaws.com"
	issuer    = "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE"
	podRole   = "arn:aws:iam::" + account + ":role/pod"
	subject   = "system:serviceaccount:shop:cart"
)

// mayPull is what a node may do: AWS's AmazonEC2ContainerRegistryPullOnly, and the same for ECR Public.
var mayPull = cloud.Statement{
	Actions: []string{
		"ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability",
		"ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken",
	},
	Resources: []string{"*"},
}

// mayAssume is what somebody may do who assumes roles.
var mayAssume = cloud.Statement{Actions: []string{"sts:AssumeRole"}, Resources: []string{"*"}}

// in asks for an image of a registry.
func (s *scene) in(host string) {
	if strings.Contains(host, ".dkr") {
		s.AddRegistry(strings.TrimSuffix(host, ":443"), cloud.Repository{Name: repo})
	}
	s.image = host + "/" + repo
}

// add adds to the environment.
func (s *scene) add(variables ...string) { s.env = append(s.env, variables...) }

// keys are those of a user of the region's partition.
func (s *scene) keys(region string, policy ...cloud.Statement) cloud.Keys {
	return s.AddUser("arn:"+partition(region)+":iam::"+account+":user/node", policy...)
}

// node gives the programs such keys in their environment.
func (s *scene) node(policy ...cloud.Statement) { s.add(s.keys("", policy...).Environ()...) }

// role makes a role of the account, that trusts somebody.
func (s *scene) role(arn string, trust ...cloud.Trust) string {
	s.AddRole(cloud.Role{ARN: arn, Trust: trust, Policy: []cloud.Statement{mayPull}})
	return arn
}

// pod gives the request the token of a pod, and the account the issuer and the role that the pod's service account may assume.
func (s *scene) pod(claims map[string]any) {
	from := s.AddIssuer(issuer)
	s.AddOIDCProvider(account, issuer, audience)
	s.role(podRole, cloud.Trust{Federated: issuer, Audience: audience, Subject: subject})
	all := map[string]any{
		"sub": subject, "aud": []string{audience},
		"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "1"}},
	}
	maps.Copy(all, claims)
	s.token = from.Token(all)
}

// annotate names a role at the pod's service account.
func (s *scene) annotate(role string) { s.annotations = map[string]string{roleAnnotation: role} }

// config writes the shared configuration file.
func (s *scene) config(lines ...string) {
	s.write(".aws/config", strings.Join(lines, "\n")+"\n", 0o600)
}

// partition is that of a region.
func partition(region string) string {
	for prefix, name := range map[string]string{
		"cn-": "aws-cn", "us-gov-": "aws-us-gov", "eusc-": "aws-eusc", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b", "eu-isoe-": "aws-iso-e", "us-isof-": "aws-iso-f",
	} {
		if strings.HasPrefix(region, prefix) {
			return name
		}
	}
	return "aws"
}

// host is a row about a private registry's host, asked by somebody of its partition.
func host(name, host, region string) row {
	return row{section: hosts, name: fmt.Sprintf("%s: %#q", name, host), want: "token", given: func(s *scene) {
		s.in(host)
		s.add(s.keys(region, mayPull).Environ()...)
	}}
}

// at is a row about an image of the usual registry.
func at(section, name string, given func(*scene)) row {
	return row{section: section, name: name, want: "token", noHelper: section == pods, given: func(s *scene) {
		s.in(plain)
		given(s)
	}}
}

// but declares that two sides differ.
func (r row) but(f field, why reason) row {
	r.differs = maps.Clone(r.differs)
	if r.differs == nil {
		r.differs = map[field]reason{}
	}
	r.differs[f] = why
	return r
}

func (r row) helped(why reason) row   { r.helper = why; return r }
func (r row) beyondPeers() row        { r.beyond = true; return r }
func (r row) wants(result string) row { r.want = result; return r }

// fails says that the broker fails, and what there is to tell.
func (r row) fails(tells ...fact) row { r.want, r.tells = "failure", tells; return r }

// The sections of the document.
const (
	hosts    = "Hosts"
	public   = "ECR Public"
	nodes    = "The node's identity"
	pods     = "The pod's identity"
	troubles = "When something is wrong"
	ways     = "Endpoints and proxies"
	settings = "Beyond the peers"
)

// Reasons that more than one row has.
const (
	ownHosts  reason = "a token is asked for only where the host is ECR's, region and domain of one partition: whoever runs another would be handed the token"
	sameKind  reason = "the API of the same kind as the host is asked: who names a FIPS or dual-stack host has a rule or a network that wants it"
	noFIPS    reason = "AWS documents no FIPS endpoint of ECR there, and the plain one is not what the host's name asks for; the error says so"
	advises   reason = "the error says what to do"
	podNamed  reason = "CloudTrail shows whose pod it was"
	portKept  reason = "the kubelet looks for the host with its port"
	checked   reason = "a program that anybody may replace is not run with the node's rights"
	patient   reason = "throttling passes: tried again, with growing pauses, for as long as the provider's timeout allows; the SDK's default is three times"
	skewed    reason = "AWS's own clock is in its answer; the request is signed by that, once"
	inTime    reason = "the answer comes within the provider's timeout (3 s here); the official provider waits 30 s for each of three attempts, and the kubelet ends it after 60"
	noBodies  reason = "nothing of an answer's body is repeated"
	asItIs    reason = "a custom endpoint is used as it is; the SDK refuses a kind of endpoint beside it"
	onlyV2    reason = "the first version answers whoever gets a program on the node to fetch a URL: it is not used, and AWS advises to switch it off; a hop limit of 2 mends this"
	anyway    reason = "what is public can be pulled without a token, at a lower rate"
	noCaching reason = "there is nothing to keep for long: a permission that has just been granted is soon used"
)

func rows() []row {
	access, operation := tells("AccessDenied", "AccessDenied"), tells("the operation", "GetAuthorizationToken")
	tried := tells("what was tried", "environment.*shared configuration.*container credentials.*instance metadata")
	statement := tells("the missing permission", `must allow ecr(-public)?:GetAuthorizationToken`)
	return []row{
		host("commercial", plain, "eu-west-1"),
		host("GovCloud", account+".dkr.ecr.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
		host("China", account+".dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
		host("European Sovereign Cloud", account+".dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
		host("isolated", account+".dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
		host("isolated", account+".dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
		host("isolated", account+".dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
		host("isolated", account+".dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
		host("FIPS", account+".dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1").but(api, sameKind),
		host("FIPS, GovCloud", account+".dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1").but(api, sameKind),
		host("FIPS where AWS has none", account+".dkr.ecr-fips.eu-west-1.amazonaws.com", "eu-west-1").fails(tells("FIPS", "FIPS")).but(result, noFIPS).helped(noFIPS),
		host("dual-stack", account+".dkr-ecr.eu-west-1.on.aws", "eu-west-1").but(api, sameKind),
		host("dual-stack, China", account+".dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1").but(api, sameKind),
		host("dual-stack, FIPS", account+".dkr-ecr-fips.us-east-1.on.aws", "us-east-1").but(api, sameKind),
		host("port named", plain+":443", "eu-west-1").but(registry, portKept).but(authKeys, portKept),
		host("a region of another partition", account+".dkr.ecr.cn-north-1.amazonaws.com", "cn-north-1").wants("nothing").but(result, ownHosts).helped(ownHosts),
		{
			section: hosts, name: "not ECR's, no region in the environment: `registry.example`", want: "nothing", given: func(s *scene) { s.in("registry.example"); s.node(mayPull) },
			differs: map[field]reason{result: "an image that is not ECR's is no failure: other providers may know it"}, helper: "a helper has no other way to say so",
		},
		{section: hosts, name: "not ECR's, AWS_REGION set: `registry.example`", want: "nothing", given: func(s *scene) {
			s.in("registry.example")
			s.node(mayPull)
			s.add("AWS_REGION=eu-west-1")
		}, differs: map[field]reason{result: ownHosts}, helper: "a helper has no other way to say so"},
		{section: hosts, name: "another account's, which lets this one pull", want: "token", given: func(s *scene) {
			s.image = "210987654321.dkr.ecr.eu-west-1.amazonaws.com/" + repo
			s.AddRegistry("210987654321.dkr.ecr.eu-west-1.amazonaws.com", cloud.Repository{Name: repo, Pull: []string{account}})
			s.node(mayPull)
		}},

		{section: public, name: "`public.ecr.aws`", want: "token", given: func(s *scene) { s.in("public.ecr.aws"); s.node(mayPull) }},
		{section: public, name: "`ecr-public.aws.com` (dual-stack)", want: "token", given: func(s *scene) { s.in("ecr-public.aws.com"); s.node(mayPull) }, differs: map[field]reason{api: sameKind}},
		{section: public, name: "without an identity", want: "nothing", given: func(s *scene) { s.in("public.ecr.aws") }, differs: map[field]reason{result: anyway}, helper: anyway},
		{section: public, name: "the identity may not ask for a token", want: "nothing", given: func(s *scene) { s.in("public.ecr.aws"); s.node() }, differs: map[field]reason{result: anyway}, helper: anyway},
		{section: public, name: "keys of GovCloud", want: "nothing", given: func(s *scene) {
			s.in("public.ecr.aws")
			s.add(s.keys("us-gov-west-1", mayPull).Environ()...)
		}, differs: map[field]reason{result: anyway}, helper: anyway},

		at(nodes, "keys in a shared credentials file, by AWS_PROFILE", func(s *scene) {
			k := s.keys("", mayPull)
			s.write(".aws/credentials", "[node]\naws_access_key_id = "+k.AccessKeyID+"\naws_secret_access_key = "+k.SecretAccessKey+"\n", 0o600)
			s.add("AWS_PROFILE=node")
		}),
		at(nodes, "a profile that assumes a role", func(s *scene) {
			k := s.keys("", mayAssume)
			role := s.role("arn:aws:iam::"+account+":role/puller", cloud.Trust{AWS: account})
			s.write(".aws/credentials", "[base]\naws_access_key_id = "+k.AccessKeyID+"\naws_secret_access_key = "+k.SecretAccessKey+"\n", 0o600)
			s.config("[profile puller]", "role_arn = "+role, "source_profile = base", "role_session_name = node-7")
			s.add("AWS_PROFILE=puller")
		}),
		at(nodes, "`credential_process`", func(s *scene) { s.process(0o755) }),
		at(nodes, "`credential_process` that anybody on the node may change", func(s *scene) { s.process(0o777) }).fails(tells("which file", "bin/process"), tells("what to do", "chmod")).but(result, checked).helped(checked),
		at(nodes, "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN", func(s *scene) {
			s.pod(nil)
			s.add("AWS_WEB_IDENTITY_TOKEN_FILE="+s.write("token", s.token, 0o600), "AWS_ROLE_ARN="+podRole, "AWS_ROLE_SESSION_NAME=node-7")
			s.token = ""
		}),
		at(nodes, "instance metadata", func(s *scene) { s.add(s.Instance(s.instanceRole()).Environ()...) }),
		at(nodes, "instance metadata: a hop limit of 1 in the way of version 2, version 1 allowed", func(s *scene) {
			i := s.Instance(s.instanceRole())
			i.AllowV1()
			i.ExceedHopLimit()
			s.add(i.Environ()...)
		}).fails(tells("the hop limit", "hop limit")).but(result, onlyV2).helped(onlyV2),
		at(nodes, "instance metadata that nobody answers for (a machine outside AWS)", func(s *scene) {
			i := s.Instance("")
			i.Absent()
			s.add(i.Environ()...)
		}).fails(tried, tells("instance metadata", "IMDS|instance metadata")).but(says, advises),
		at(nodes, "instance metadata switched off", func(s *scene) {
			i := s.Instance(s.instanceRole())
			i.Disable()
			s.add(i.Environ()...)
		}).fails(tells("the status", "403"), tells("instance metadata", "IMDS|instance metadata")),
		at(nodes, "an instance without a role", func(s *scene) { s.add(s.Instance("").Environ()...) }).
			fails(tells("the status", "404"), tells("instance metadata", "IMDS|instance metadata"), tells("attach an instance role", "attach an instance role")).but(says, advises),
		at(nodes, "container credentials endpoint (EKS Pod Identity, ECS)", func(s *scene) {
			s.add(s.Container(s.role("arn:aws:iam::" + account + ":role/task")).Environ()...)
		}),
		at(nodes, "none at all", func(*scene) {}).fails(
			tried, tells("instance metadata", "IMDS|instance metadata")).but(says, advises),

		at(pods, "role in the annotation", func(s *scene) { s.pod(nil); s.annotate(podRole) }).but(session, podNamed),
		at(pods, "role in AWS_ECR_ROLE_ARN", func(s *scene) { s.pod(nil); s.add("AWS_ECR_ROLE_ARN=" + podRole) }).but(session, podNamed),
		at(pods, "no role: the node's identity", func(s *scene) { s.pod(nil); s.node(mayPull) }),
		at(pods, "the annotation is empty, AWS_ECR_ROLE_ARN is set", func(s *scene) { s.pod(nil); s.annotate(""); s.add("AWS_ECR_ROLE_ARN=" + podRole); s.node(mayPull) }),
		{section: pods, noHelper: true, name: "ECR Public, AWS_REGION set", want: "token", given: func(s *scene) {
			s.in("public.ecr.aws")
			s.pod(nil)
			s.annotate(podRole)
			s.add("AWS_REGION=eu-west-1")
		}, differs: map[field]reason{session: podNamed}},
		{
			section: pods, noHelper: true, name: "ECR Public, no AWS_REGION", want: "token", given: func(s *scene) { s.in("public.ecr.aws"); s.pod(nil); s.annotate(podRole) },
			differs: map[field]reason{result: "ECR Public's region is known, and its STS is asked"},
		},
		at(pods, "the role does not trust this service account", func(s *scene) {
			s.pod(map[string]any{"sub": "system:serviceaccount:shop:other"})
			s.annotate(podRole)
			s.node(mayPull)
		}).fails(tells("AccessDenied", "AccessDenied"), tells("the role", podRole), tells("the subject", "shop:other")).but(says, advises),
		at(pods, "the token's issuer is not the account's", func(s *scene) {
			s.pod(nil)
			s.token = s.AddIssuer("https://oidc.example").Token(map[string]any{"sub": subject, "aud": []string{audience}})
			s.annotate(podRole)
			s.node(mayPull)
		}).fails(tells("InvalidIdentityToken", "InvalidIdentityToken"), tells("the issuer", "https://oidc.example")),
		at(pods, "the token has expired", func(s *scene) {
			s.pod(map[string]any{"iat": s.Now().Add(-2 * tokenLife).Unix(), "exp": s.Now().Add(-tokenLife).Unix()})
			s.annotate(podRole)
			s.node(mayPull)
		}).fails(tells("ExpiredToken", "Expired|expired")),

		at(troubles, "the identity may not ask for a token", func(s *scene) { s.node() }).fails(access, operation, statement).but(says, advises),
		at(troubles, "the access key is unknown", func(s *scene) {
			s.add("AWS_ACCESS_KEY_ID=AKIAUNKNOWN000000000", "AWS_SECRET_ACCESS_KEY=unknown")
		}).fails(tells("the code", "UnrecognizedClientException"), tells("what it means", "does not know this access key")).but(says, advises),
		at(troubles, "the secret key is wrong", func(s *scene) {
			k := s.keys("", mayPull)
			s.add("AWS_ACCESS_KEY_ID="+k.AccessKeyID, "AWS_SECRET_ACCESS_KEY=wrong")
		}).fails(tells("the code", "InvalidSignatureException"), tells("what it means", "secret access key does not belong")).but(says, advises),
		at(troubles, "the session has expired", func(s *scene) { s.add(s.expired()...) }).fails(tells("the code", "ExpiredToken"), tells("what it means", "credentials have expired")).but(says, advises),
		at(troubles, "throttled once", func(s *scene) { s.node(mayPull); s.Fail(cloud.Fault{Service: "ecr", Times: 1}) }),
		at(troubles, "throttled four times", func(s *scene) { s.node(mayPull); s.Fail(cloud.Fault{Service: "ecr", Times: 4}) }).
			but(result, patient).helped(patient),
		at(troubles, "throttled without end", func(s *scene) {
			s.timeout = "4s"
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr"})
		}).fails(tells("ThrottlingException", "Throttling"), tells("throttled", "throttled")).but(says, advises),
		at(troubles, "the clock is 20 minutes behind", func(s *scene) { s.node(mayPull); s.SetClockOffset(20 * time.Minute) }).but(result, skewed).helped(skewed),
		at(troubles, "the clock is 20 minutes ahead", func(s *scene) { s.node(mayPull); s.SetClockOffset(-20 * time.Minute) }).but(result, skewed).helped(skewed),
		at(troubles, "ECR answers 500 once", func(s *scene) {
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr", Times: 1, Status: 500, Code: "ServerException"})
		}),
		at(troubles, "ECR answers 500 always", func(s *scene) {
			s.timeout = "4s"
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr", Status: 500, Code: "ServerException"})
		}).fails(tells("the status", "500"), tells("the code", "ServerException")),
		at(troubles, "ECR does not answer", func(s *scene) {
			s.timeout, s.patience = "3s", 10*time.Second
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr", Hang: true})
		}).fails(tells("who did not answer", "api.ecr.eu-west-1.amazonaws.com.*no answer")).but(result, inTime).helped(inTime),
		at(troubles, "connections to ECR are cut", func(s *scene) {
			s.timeout = "4s"
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr", Reset: true})
		}).fails(tells("the operation", "GetAuthorizationToken"), tells("the host", "api.ecr.eu-west-1.amazonaws.com")),
		at(troubles, "the answer is an error page with a secret in it", func(s *scene) {
			s.node(mayPull)
			s.Fail(cloud.Fault{Service: "ecr", Status: 403, Code: "AccessDeniedException", Body: `{"__type":"AccessDeniedException","message":"no: ` + secret + `"}`})
		}).fails(access, keeps("the secret", secret)).but(says, noBodies),
		at(troubles, "a proxy's certificate is of an unknown CA", func(s *scene) {
			other := s.write("other.pem", otherCA(s), 0o600)
			s.node(mayPull)
			s.timeout = "4s"
			s.add("AWS_CA_BUNDLE=", "SSL_CERT_FILE="+other, "SSL_CERT_DIR="+s.TempDir())
		}).fails(tells("unknown authority", "certificate signed by unknown authority"), tells("AWS_CA_BUNDLE", "AWS_CA_BUNDLE")).but(says, advises),

		at(ways, "AWS_ENDPOINT_URL_ECR", func(s *scene) {
			s.node(mayPull)
			s.AddEndpoint(endpoint, "ecr", "eu-west-1")
			s.add("AWS_ENDPOINT_URL_ECR=https://" + endpoint)
		}),
		{section: ways, name: "AWS_ENDPOINT_URL_ECR and a FIPS host", want: "token", given: func(s *scene) {
			s.in(account + ".dkr.ecr-fips.us-east-1.amazonaws.com")
			s.node(mayPull)
			s.add("AWS_ENDPOINT_URL_ECR=https://api.ecr.us-east-1.amazonaws.com")
		}},
		at(ways, "AWS_ENDPOINT_URL_ECR and AWS_USE_DUALSTACK_ENDPOINT", func(s *scene) {
			s.node(mayPull)
			s.AddEndpoint(endpoint, "ecr", "eu-west-1")
			s.add("AWS_ENDPOINT_URL_ECR=https://"+endpoint, "AWS_USE_DUALSTACK_ENDPOINT=true")
		}).but(result, asItIs).helped(asItIs),
		at(ways, "AWS_USE_DUALSTACK_ENDPOINT", func(s *scene) { s.node(mayPull); s.add("AWS_USE_DUALSTACK_ENDPOINT=true") }),
		{section: ways, name: "AWS_USE_FIPS_ENDPOINT", want: "token", given: func(s *scene) {
			s.in(account + ".dkr.ecr.us-east-1.amazonaws.com")
			s.node(mayPull)
			s.add("AWS_USE_FIPS_ENDPOINT=true")
		}, differs: map[field]reason{api: "two names of one endpoint: that of the SDK's newer version"}},
		at(ways, "the proxy is down", func(s *scene) {
			s.timeout = "4s"
			s.node(mayPull)
			s.add("HTTPS_PROXY=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1")
		}).fails(tells("proxy", "proxy"), tells("connection refused", "connection refused")),

		at(settings, "a chain of roles: `roleARN`, `externalID`, `via`", func(s *scene) {
			hop := s.role("arn:aws:iam::"+account+":role/hop", cloud.Trust{AWS: account})
			s.AddRole(cloud.Role{ARN: hop, Trust: []cloud.Trust{{AWS: account}}, Policy: []cloud.Statement{mayAssume}})
			s.AddRole(cloud.Role{ARN: "arn:aws:iam::" + other + ":role/pull", Trust: []cloud.Trust{{AWS: hop, ExternalID: "registry-7"}}, Policy: []cloud.Statement{mayPull}})
			s.AddRegistry(otherHost, cloud.Repository{Name: repo})
			s.image = otherHost + "/" + repo
			s.node(mayAssume)
			s.settings = map[string]any{"via": []any{map[string]any{"roleARN": hop}}, "roleARN": "arn:aws:iam::" + other + ":role/pull", "externalID": "registry-7"}
		}).beyondPeers(),
		at(settings, "a role for the registry's account: `roles`", func(s *scene) {
			s.AddRole(cloud.Role{ARN: "arn:aws:iam::" + other + ":role/pull", Trust: []cloud.Trust{{AWS: account}}, Policy: []cloud.Statement{mayPull}})
			s.AddRegistry(otherHost, cloud.Repository{Name: repo})
			s.image = otherHost + "/" + repo
			s.node(mayAssume)
			s.settings = map[string]any{"roles": []any{map[string]any{"accounts": []string{other}, "roleARN": "arn:aws:iam::" + other + ":role/pull"}}}
		}).beyondPeers(),
		at(settings, "an OIDC issuer outside AWS: `webIdentity`", func(s *scene) {
			from := s.AddIssuer("https://oidc.example")
			s.AddOIDCProvider(account, "https://oidc.example", audience)
			role := s.role("arn:aws:iam::"+account+":role/outside", cloud.Trust{Federated: "https://oidc.example", Audience: audience, Subject: "node-7"})
			file := s.write("token", from.Token(map[string]any{"sub": "node-7", "aud": audience}), 0o600)
			s.settings = map[string]any{"roleARN": role, "webIdentity": map[string]any{"file": map[string]any{"path": file}}}
		}).beyondPeers(),
		at(settings, "pods without a role get nothing: `podIdentity: Require`", func(s *scene) {
			s.pod(nil)
			s.node(mayPull)
			s.settings = map[string]any{"podIdentity": "Require"}
		}).fails(tells("what to do", roleAnnotation)).beyondPeers(),
		at(settings, "the node's identity although there is a pod's: `podIdentity: Off`", func(s *scene) {
			s.pod(nil)
			s.annotate(podRole)
			s.node(mayPull)
			s.settings = map[string]any{"podIdentity": "Off"}
		}).beyondPeers(),
		{section: settings, beyond: true, name: "a partition that nobody knows yet: `registrySuffixes`", want: "token", given: func(s *scene) {
			s.in(account + ".dkr.ecr.eu-example-1.amazonaws.example")
			s.AddEndpoint("api.ecr.eu-example-1.amazonaws.example", "ecr", "eu-example-1")
			s.node(mayPull)
			s.settings = map[string]any{"registrySuffixes": []string{"amazonaws.example"}}
		}},
		at(settings, "each image by itself: `scope: image`", func(s *scene) {
			s.node(mayPull)
			s.settings = map[string]any{"scope": "image"}
		}).beyondPeers(),
		{section: settings, beyond: true, name: "no anonymous pulls from ECR Public: `public: required`", want: "failure", tells: []fact{statement}, given: func(s *scene) {
			s.in("public.ecr.aws")
			s.node()
			s.settings = map[string]any{"public": "required"}
		}},
		{section: settings, beyond: true, name: "always anonymous pulls from ECR Public: `public: anonymous`", want: "nothing", given: func(s *scene) {
			s.in("public.ecr.aws")
			s.node(mayPull)
			s.settings = map[string]any{"public": "anonymous"}
		}},
	}
}

// endpoint is a custom one: an interface endpoint's own name.
const endpoint = "vpce-0123456789abcdef0-abcdefgh.api.ecr.eu-west-1.vpce.amazonaws.com"

// secret is something that no message may have in it.
const secret = "canary-of-an-answer"

// instanceRole is a role for instances.
func (s *scene) instanceRole() string { return s.role("arn:aws:iam::" + account + ":role/instance") }

// process is a credential_process, a file with the given mode.
func (s *scene) process(mode os.FileMode) {
	k := s.keys("", mayPull)
	program := s.write("bin/process", "#!/bin/sh\nprintf '%s' '"+encode(s.T, map[string]any{"Version": 1, "AccessKeyId": k.AccessKeyID, "SecretAccessKey": k.SecretAccessKey})+"'\n", mode)
	s.config("[default]", "credential_process = "+program)
}

// expired are the credentials of a session that is over.
func (s *scene) expired() []string {
	s.SetClockOffset(-24 * time.Hour)
	_, values := metadata{s.T, s.Instance(s.instanceRole()).URL()}.credentials()
	s.SetClockOffset(0)
	return cloud.Keys{AccessKeyID: values["AccessKeyId"], SecretAccessKey: values["SecretAccessKey"], SessionToken: values["Token"]}.Environ()
}

// otherCA is the certificate of a CA that nobody has signed anything with.
func otherCA(s *scene) string {
	other := cloud.New(s.T)
	data, err := os.ReadFile(other.CAFile())
	if err != nil {
		s.Fatal(err)
	}
	return string(data)
}

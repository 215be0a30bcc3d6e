package cloud

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
)

// login gets a password for the registries of a region.
func (c *Cloud) login(t testing.TB, k Keys, region string) string {
	t.Helper()
	answer, err := ecr.NewFromConfig(c.config(t, k, region)).GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
	if err != nil {
		t.Fatal(err)
	}
	return unwrapped(t, answer.AuthorizationData[0].AuthorizationToken)
}

func (c *Cloud) loginPublic(t testing.TB, k Keys) string {
	t.Helper()
	answer, err := ecrpublic.NewFromConfig(c.config(t, k, "us-east-1")).GetAuthorizationToken(t.Context(), &ecrpublic.GetAuthorizationTokenInput{})
	if err != nil {
		t.Fatal(err)
	}
	return unwrapped(t, answer.AuthorizationData.AuthorizationToken)
}

func unwrapped(t testing.TB, token *string) string {
	t.Helper()
	decoded, err := base64.StdEncoding.DecodeString(*token)
	name, password, ok := strings.Cut(string(decoded), ":")
	if err != nil || !ok || name != "AWS" {
		t.Fatalf("a token of the form %.4q…: %v", decoded, err)
	}
	return password
}

func TestECREndpoints(t *testing.T) {
	for _, test := range []struct {
		region, partition string
		fips, dual        bool
		base              string // instead of what the SDK takes
		host              string
		reached           bool
	}{
		{region: "eu-west-1", partition: "aws", host: "api.ecr.eu-west-1.amazonaws.com", reached: true},
		{region: "eu-west-1", partition: "aws", base: "ecr.eu-west-1.amazonaws.com", host: "ecr.eu-west-1.amazonaws.com", reached: true},
		{region: "eu-west-1", partition: "aws", dual: true, host: "ecr.eu-west-1.api.aws", reached: true},
		{region: "us-west-1", partition: "aws", fips: true, host: "api.ecr-fips.us-west-1.amazonaws.com", reached: true},
		{region: "us-west-1", partition: "aws", base: "ecr-fips.us-west-1.amazonaws.com", host: "ecr-fips.us-west-1.amazonaws.com", reached: true},
		{region: "us-west-1", partition: "aws", fips: true, dual: true, host: "ecr-fips.us-west-1.api.aws", reached: true},
		{region: "eu-west-1", partition: "aws", fips: true, host: "api.ecr-fips.eu-west-1.amazonaws.com"},
		{region: "eu-west-1", partition: "aws", base: "ecr-fips.eu-west-1.amazonaws.com", host: "ecr-fips.eu-west-1.amazonaws.com"},
		{region: "eu-west-1", partition: "aws", fips: true, dual: true, host: "ecr-fips.eu-west-1.api.aws"},
		{region: "us-gov-east-1", partition: "aws-us-gov", fips: true, host: "api.ecr-fips.us-gov-east-1.amazonaws.com", reached: true},
		{region: "us-gov-west-1", partition: "aws-us-gov", fips: true, dual: true, host: "ecr-fips.us-gov-west-1.api.aws", reached: true},
		{region: "cn-north-1", partition: "aws-cn", host: "api.ecr.cn-north-1.amazonaws.com.cn", reached: true},
		{region: "cn-north-1", partition: "aws-cn", dual: true, host: "ecr.cn-north-1.api.amazonwebservices.com.cn", reached: true},
		{region: "cn-north-1", partition: "aws-cn", fips: true, host: "api.ecr-fips.cn-north-1.amazonaws.com.cn"},
		{region: "eusc-de-east-1", partition: "aws-eusc", host: "api.ecr.eusc-de-east-1.amazonaws.eu", reached: true},
		{region: "us-iso-east-1", partition: "aws-iso", host: "api.ecr.us-iso-east-1.c2s.ic.gov", reached: true},
		{region: "us-isob-east-1", partition: "aws-iso-b", dual: true, host: "ecr.us-isob-east-1.api.aws.scloud", reached: true},
		{region: "eu-isoe-west-1", partition: "aws-iso-e", host: "api.ecr.eu-isoe-west-1.cloud.adc-e.uk", reached: true},
		{region: "us-isof-south-1", partition: "aws-iso-f", host: "api.ecr.us-isof-south-1.csp.hci.ic.gov", reached: true},
		{region: "eu-west-1", partition: "aws", base: "vpce-1.api.ecr.example.com", host: "vpce-1.api.ecr.example.com", reached: true},
	} {
		t.Run(test.host, func(t *testing.T) {
			c := New(t)
			c.AddEndpoint("vpce-1.api.ecr.example.com", "ecr", "eu-west-1")
			k := c.AddUser("arn:"+test.partition+":iam::"+testAccount+":user/node", PullPolicy()...)
			client := ecr.NewFromConfig(c.config(t, k, test.region), func(o *ecr.Options) {
				if test.fips {
					o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
				}
				if test.dual {
					o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
				}
				if test.base != "" {
					o.BaseEndpoint = aws.String("https://" + test.base)
				}
			})
			answer, err := client.GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
			if r := c.last(t); r.Host != test.host || (r.Service == "ecr") != test.reached || (err == nil) != test.reached {
				t.Fatalf("%+v, %v", r, err)
			}
			if err != nil {
				return
			}
			data := answer.AuthorizationData[0]
			if life := data.ExpiresAt.Sub(c.Now()); life > 12*time.Hour || life < 12*time.Hour-time.Minute {
				t.Errorf("a token for %s", life)
			}
			if want := "https://" + testAccount + ".dkr.ecr." + test.region + "."; !strings.HasPrefix(*data.ProxyEndpoint, want) {
				t.Errorf("for %s", *data.ProxyEndpoint)
			}
		})
	}
}

func TestPermissionsOfECR(t *testing.T) {
	const other = "444455556666"
	c := New(t)
	c.AddRegistry(testHost, Repository{Name: "app"}, Repository{Name: "given", Pull: []string{testUser}}, Repository{Name: "hub", PullThrough: true})
	c.AddRegistry(other+".dkr.ecr.eu-west-1.amazonaws.com", Repository{Name: "closed"}, Repository{Name: "open", Pull: []string{testAccount}})
	all := []string{"ecr:*"}
	layer := digest(imageConfig)
	for _, test := range []struct {
		name   string
		policy []Statement
		call   func(*ecr.Client) error
		want   string
	}{
		{"a token", PullPolicy(), token(t), ""},
		{"a token without permission", nil, token(t), "400 AccessDeniedException"},
		{"a token with permission for a repository", []Statement{{all, []string{"arn:aws:ecr:*:*:repository/*"}}}, token(t), "400 AccessDeniedException"},
		{"a token for what is no account", PullPolicy(), token(t, "1"), "400 InvalidParameterException"},
		{"a token for another account", PullPolicy(), token(t, other), ""},
		{"an image", PullPolicy(), image(t, "", "app"), ""},
		{"an image without permission", nil, image(t, "", "app"), "400 AccessDeniedException"},
		{"an image with permission for another", []Statement{{all, []string{"arn:aws:ecr:eu-west-1:" + testAccount + ":repository/other"}}}, image(t, "", "app"), "400 AccessDeniedException"},
		{"an image with permission for it", []Statement{{all, []string{"arn:aws:ecr:eu-west-1:" + testAccount + ":repository/a*"}}}, image(t, "", "app"), ""},
		{"an image that the repository's policy gives", nil, image(t, "", "given"), ""},
		{"an image of no repository", PullPolicy(), image(t, "", "none"), "400 RepositoryNotFoundException"},
		{"another account's image", PullPolicy(), image(t, other, "closed"), "400 AccessDeniedException"},
		{"another account's image that its policy gives", PullPolicy(), image(t, other, "open"), ""},
		{"another account's image that only its policy gives", nil, image(t, other, "open"), "400 AccessDeniedException"},
		{"another account's image of no repository", PullPolicy(), image(t, other, "none"), "400 AccessDeniedException"},
		{"a layer", PullPolicy(), func(client *ecr.Client) error {
			_, err := client.GetDownloadUrlForLayer(t.Context(), &ecr.GetDownloadUrlForLayerInput{RepositoryName: aws.String("app"), LayerDigest: &layer})
			return err
		}, ""},
		{"no such layer", PullPolicy(), func(client *ecr.Client) error {
			_, err := client.GetDownloadUrlForLayer(t.Context(), &ecr.GetDownloadUrlForLayerInput{RepositoryName: aws.String("app"), LayerDigest: aws.String(digest("x"))})
			return err
		}, "400 LayersNotFoundException"},
		{"layers", PullPolicy(), func(client *ecr.Client) error {
			answer, err := client.BatchCheckLayerAvailability(t.Context(), &ecr.BatchCheckLayerAvailabilityInput{RepositoryName: aws.String("app"), LayerDigests: []string{layer, digest("x")}})
			if err == nil && (len(answer.Layers) != 1 || len(answer.Failures) != 1) {
				t.Errorf("%v", answer)
			}
			return err
		}, ""},
		{"repositories", []Statement{{Actions: all}}, func(client *ecr.Client) error {
			answer, err := client.DescribeRepositories(t.Context(), &ecr.DescribeRepositoriesInput{})
			if err == nil && (len(answer.Repositories) != 2 || *answer.Repositories[0].RepositoryUri != testHost+"/app") {
				t.Errorf("%v", answer.Repositories)
			}
			return err
		}, ""},
		{"no such repository", []Statement{{Actions: all}}, func(client *ecr.Client) error {
			_, err := client.DescribeRepositories(t.Context(), &ecr.DescribeRepositoriesInput{RepositoryNames: []string{"none"}})
			return err
		}, "400 RepositoryNotFoundException"},
		{"rules", []Statement{{Actions: all}}, func(client *ecr.Client) error {
			answer, err := client.DescribePullThroughCacheRules(t.Context(), &ecr.DescribePullThroughCacheRulesInput{})
			if err == nil && (len(answer.PullThroughCacheRules) != 1 || *answer.PullThroughCacheRules[0].EcrRepositoryPrefix != "hub") {
				t.Errorf("%v", answer.PullThroughCacheRules)
			}
			return err
		}, ""},
		{"rules without permission", PullPolicy(), func(client *ecr.Client) error {
			_, err := client.DescribePullThroughCacheRules(t.Context(), &ecr.DescribePullThroughCacheRulesInput{})
			return err
		}, "400 AccessDeniedException"},
		{"another operation", []Statement{{Actions: all}}, func(client *ecr.Client) error {
			_, err := client.DescribeRegistry(t.Context(), &ecr.DescribeRegistryInput{})
			return err
		}, "400 UnknownOperationException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.call(ecr.NewFromConfig(c.config(t, c.AddUser(testUser, test.policy...), "eu-west-1")))
			if got := said(err); got != test.want {
				t.Errorf("%q, not %q (%v)", got, test.want, err)
			}
			if r := c.last(t); r.Principal != testUser && r.Code != "UnknownOperationException" || (r.Code != "") != (err != nil) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func token(t *testing.T, registries ...string) func(*ecr.Client) error {
	return func(client *ecr.Client) error {
		_, err := client.GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{RegistryIds: registries}) //nolint:staticcheck // deprecated, but what old programs do
		return err
	}
}

func image(t *testing.T, account, name string) func(*ecr.Client) error {
	return func(client *ecr.Client) error {
		input := &ecr.BatchGetImageInput{RepositoryName: &name, ImageIds: []types.ImageIdentifier{{ImageTag: aws.String("latest")}}}
		if account != "" {
			input.RegistryId = &account
		}
		_, err := client.BatchGetImage(t.Context(), input)
		return err
	}
}

func TestECRPublic(t *testing.T) {
	for _, test := range []struct {
		name, user, region string
		policy             []Statement
		want               string
	}{
		{"both permissions", testUser, "us-east-1", PublicPolicy(), ""},
		{"without the bearer token", testUser, "us-east-1", []Statement{{Actions: []string{"ecr-public:*"}}}, "400 AccessDeniedException"},
		{"without the token", testUser, "us-east-1", []Statement{{Actions: []string{"sts:*"}}}, "400 AccessDeniedException"},
		{"keys of China", "arn:aws-cn:iam::111122223333:user/node", "us-east-1", PublicPolicy(), "400 UnrecognizedClientException"},
		{"keys of GovCloud", "arn:aws-us-gov:iam::111122223333:user/node", "us-east-1", PublicPolicy(), "400 UnrecognizedClientException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t)
			answer, err := ecrpublic.NewFromConfig(c.config(t, c.AddUser(test.user, test.policy...), test.region)).GetAuthorizationToken(t.Context(), &ecrpublic.GetAuthorizationTokenInput{})
			if got := said(err); got != test.want {
				t.Fatalf("%q, not %q (%v)", got, test.want, err)
			}
			if err == nil && answer.AuthorizationData.ExpiresAt.Before(c.Now().Add(11*time.Hour)) {
				t.Errorf("until %s", answer.AuthorizationData.ExpiresAt)
			}
		})
	}
	c := New(t)
	for _, region := range []string{"eu-west-1", "us-gov-west-1", "cn-north-1"} {
		_, err := ecrpublic.NewFromConfig(c.config(t, c.AddUser(testUser, PublicPolicy()...), region)).GetAuthorizationToken(t.Context(), &ecrpublic.GetAuthorizationTokenInput{})
		if r := c.last(t); err == nil || r.Service != "proxy" {
			t.Errorf("%s: %+v, %v", region, r, err)
		}
	}
	for _, host := range []string{"ecr-public.eu-west-1.amazonaws.com", "ecr-public.eu-west-1.api.aws", "api.ecr-public.us-east-1.api.aws", "ecr-public.us-gov-west-1.amazonaws.com"} {
		if c.lookup(host) != nil {
			t.Errorf("%s exists", host)
		}
	}
	c.ForgetRequests()
	client := ecrpublic.NewFromConfig(c.config(t, c.AddUser(testUser, PublicPolicy()...), "us-east-1"), func(o *ecrpublic.Options) {
		o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
	})
	if _, err := client.GetAuthorizationToken(t.Context(), &ecrpublic.GetAuthorizationTokenInput{}); err != nil || c.last(t).Host != "ecr-public.us-east-1.api.aws" {
		t.Errorf("dual-stack: %v", err)
	}
}

func TestPull(t *testing.T) {
	const other = "444455556666.dkr.ecr.eu-west-1.amazonaws.com"
	c := fixed(t)
	for _, host := range []string{testHost, testAccount + ".dkr-ecr.eu-west-1.on.aws", testAccount + ".dkr.ecr.us-east-1.amazonaws.com"} {
		c.AddRegistry(host, Repository{Name: "team/app"})
	}
	c.AddRegistry(testAccount+".dkr.ecr.cn-north-1.amazonaws.com.cn", Repository{Name: "team/app"})
	c.AddRegistry(testHost, Repository{Name: "given", Pull: []string{"arn:aws:iam::111122223333:user/tokenonly"}}, Repository{Name: "hub", PullThrough: true})
	c.AddRegistry(other, Repository{Name: "closed"}, Repository{Name: "open", Pull: []string{testAccount}}, Repository{Name: "role", Pull: []string{testRole}})
	c.AddRole(Role{ARN: testRole, Policy: PullPolicy()})

	user := func(name string, p ...Statement) Keys {
		return c.AddUser("arn:aws:iam::"+testAccount+":user/"+name, p...)
	}
	importing := append(PullPolicy(), Statement{Actions: []string{"ecr:BatchImportUpstreamImage"}})
	passwords := map[string]string{
		"puller":    c.login(t, user("puller", PullPolicy()...), "eu-west-1"),
		"tokenonly": c.login(t, user("tokenonly", Statement{Actions: []string{"ecr:GetAuthorizationToken"}}), "eu-west-1"),
		"elsewhere": c.login(t, user("elsewhere", PullPolicy()...), "us-east-1"),
		"session":   c.login(t, c.Session(testRole, "session", time.Hour), "eu-west-1"),
		"importer":  c.login(t, user("importer", importing...), "eu-west-1"),
		"creator":   c.login(t, user("creator", append(importing, Statement{Actions: []string{"ecr:CreateRepository"}})...), "eu-west-1"),
		"public":    c.loginPublic(t, user("public", PublicPolicy()...)),
		"wrong":     "wrong",
	}
	for _, test := range []struct {
		image, user, want string
		offset            time.Duration
	}{
		{image: testHost + "/team/app:1", user: "puller"},
		{image: testHost + "/team/app", user: "session"},
		{image: testHost + "/team/app@" + digest("x"), user: "puller"},
		{image: testAccount + ".dkr-ecr.eu-west-1.on.aws/team/app:1", user: "puller"},
		{image: testAccount + ".dkr.ecr.us-east-1.amazonaws.com/team/app:1", user: "puller", want: "400 DENIED: Your Authorization Token is invalid"},
		{image: testAccount + ".dkr.ecr.us-east-1.amazonaws.com/team/app:1", user: "elsewhere"},
		{image: testAccount + ".dkr.ecr.cn-north-1.amazonaws.com.cn/team/app:1", user: "puller", want: "400 DENIED"},
		{image: testHost + "/team/app:1", want: "401 UNAUTHORIZED"},
		{image: testHost + "/team/app:1", user: "wrong", want: "400 DENIED"},
		{image: testHost + "/team/app:1", user: "public", want: "400 DENIED"},
		{image: testHost + "/team/app:1", user: "tokenonly", want: "403 DENIED: User: arn:aws:iam::111122223333:user/tokenonly is not authorized to perform: ecr:BatchGetImage"},
		{image: testHost + "/given", user: "tokenonly"},
		{image: testHost + "/none", user: "puller", want: "404 NAME_UNKNOWN"},
		{image: testHost + "/team/app:1", user: "puller", offset: 12*time.Hour - time.Second},
		{image: testHost + "/team/app:1", user: "puller", offset: 12 * time.Hour, want: "403 DENIED: Your authorization token has expired"},
		{image: other + "/open", user: "puller"},
		{image: other + "/open", user: "tokenonly", want: "403 DENIED"},
		{image: other + "/closed", user: "puller", want: "403 DENIED"},
		{image: other + "/role", user: "puller", want: "403 DENIED"},
		{image: other + "/role", user: "session"},
		{image: testHost + "/hub/library/nginx:1", user: "puller", want: "ecr:BatchImportUpstreamImage"},
		{image: testHost + "/hub/library/nginx:1", user: "importer", want: "ecr:CreateRepository"},
		{image: testHost + "/hub/library/nginx:1", user: "creator"},
		{image: testHost + "/hub/library/nginx:1", user: "importer"},
		{image: "public.ecr.aws/docker/library/nginx:1"},
		{image: "public.ecr.aws/docker/library/nginx:1", user: "public"},
		{image: "ecr-public.aws.com/docker/library/nginx:1", user: "public"},
		{image: "public.ecr.aws/docker/library/nginx:1", user: "puller", want: "400 DENIED"},
		{image: "public.ecr.aws/docker/library/nginx:1", user: "public", offset: 13 * time.Hour, want: "403 DENIED"},
		{image: "999999999999.dkr.ecr.eu-west-1.amazonaws.com/app", user: "puller", want: "no such host"},
	} {
		t.Run(test.user+" "+test.image+" "+test.offset.String(), func(t *testing.T) {
			c.SetClockOffset(test.offset)
			name := ""
			if test.user != "" {
				name = "AWS"
			}
			err := c.Pull(test.image, name, passwords[test.user])
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, not %q", err, test.want)
			}
			if err != nil && test.user != "" && test.user != "wrong" && strings.Contains(err.Error(), passwords[test.user]) {
				t.Error("the password is in the error")
			}
		})
	}
	c.SetClockOffset(0)
	if err := c.Pull(testHost+"/team/app", "aws", passwords["puller"]); err == nil {
		t.Error("another user name than AWS is taken")
	}
}

func TestRegistryOverHTTP(t *testing.T) {
	c := New(t)
	c.AddRegistry(testHost, Repository{Name: "app"})
	password := c.login(t, keysOf(c), "eu-west-1")
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	for _, test := range []struct {
		path, password string
		status         int
	}{
		{"/v2/", "", 401},
		{"/v2/", password, 200},
		{"/v2/", "wrong", 400},
		{"/v2/app/manifests/latest", password, 200},
		{"/v2/app/manifests/" + digest(manifest), password, 200},
		{"/v2/app/manifests/" + digest("x"), password, 404},
		{"/v2/app/blobs/" + digest(imageConfig), password, 200},
		{"/v2/none/manifests/latest", password, 404},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+testHost+test.path, http.NoBody)
		if test.password != "" {
			r.SetBasicAuth("AWS", test.password)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != test.status {
			t.Errorf("%s: %d, not %d", test.path, answer.StatusCode, test.status)
		}
		if got := answer.Header.Get("WWW-Authenticate"); (got == `Basic realm="https://`+testHost+`/",service="ecr.amazonaws.com"`) != (test.status == 401) {
			t.Errorf("%s: a challenge of %q", test.path, got)
		}
	}
	answer, err := client.Get("https://public.ecr.aws/v2/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if got := answer.Header.Get("WWW-Authenticate"); answer.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(got, `Bearer realm="https://public.ecr.aws/token/"`) {
		t.Errorf("the public registry: %d, %q", answer.StatusCode, got)
	}
}

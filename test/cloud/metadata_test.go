package cloud

import (
	"context"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// client is Amazon's client for it, that asks once.
func (i *Instance) client() *imds.Client {
	return imds.New(imds.Options{Endpoint: i.URL(), EnableFallback: aws.FalseTernary, Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{}})
}

func TestInstance(t *testing.T) {
	c := New(t)
	c.AddRole(Role{ARN: testRole})
	i := c.Instance(testRole)
	i.SetRegion("eu-west-1")
	client := i.client()
	k, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client }).Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	life := c.aws.keys[k.AccessKeyID].expires.Sub(c.now()) // the SDK makes an hour of it
	c.mu.Unlock()
	if life > 6*time.Hour || life < 6*time.Hour-time.Minute {
		t.Errorf("credentials for %s", life)
	}
	session := Keys{k.AccessKeyID, k.SecretAccessKey, k.SessionToken}
	who, err := sts.NewFromConfig(c.config(t, session, "eu-west-1")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if want := "arn:aws:sts::111122223333:assumed-role/puller/" + i.ID(); err != nil || *who.Arn != want {
		t.Errorf("%v, %v", who, err)
	}
	region, err := client.GetRegion(t.Context(), &imds.GetRegionInput{})
	if err != nil || region.Region != "eu-west-1" {
		t.Errorf("%v, %v", region, err)
	}
	document, err := client.GetInstanceIdentityDocument(t.Context(), &imds.GetInstanceIdentityDocumentInput{})
	if err != nil || document.InstanceID != i.ID() || document.AccountID != testAccount {
		t.Errorf("%v, %v", document, err)
	}
	info, err := client.GetIAMInfo(t.Context(), &imds.GetIAMInfoInput{})
	if err != nil || info.InstanceProfileArn != "arn:aws:iam::111122223333:instance-profile/puller" {
		t.Errorf("%v, %v", info, err)
	}
	again, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = i.client() }).Retrieve(t.Context())
	if err != nil || again.AccessKeyID != k.AccessKeyID {
		t.Errorf("the same session is not given twice: %v", err)
	}
	var operations []string
	for _, r := range c.Requests() {
		if r.Service == "imds" {
			operations = append(operations, r.Operation)
		}
	}
	if !slices.Contains(operations, "PUT /latest/api/token") || !slices.Contains(operations, "GET /latest/meta-data/iam/security-credentials/puller") {
		t.Errorf("%q", operations)
	}
}

func TestInstanceWithoutRole(t *testing.T) {
	c := New(t)
	_, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = c.Instance("").client() }).Retrieve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Error(err)
	}
}

func TestRulesOfIMDS(t *testing.T) {
	c := fixed(t)
	for _, test := range []struct {
		name, method, path string
		header             map[string]string
		knob               func(*Instance)
		token              bool // get one first
		later              time.Duration
		status             int
	}{
		{name: "a token", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "60"}, status: 200},
		{name: "a token for six hours", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "21600"}, status: 200},
		{name: "a token for more", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "21601"}, status: 400},
		{name: "a token for no time", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "0"}, status: 400},
		{name: "a token without a time", method: "PUT", path: "/latest/api/token", status: 400},
		{name: "a token for somebody behind a proxy", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "60", "X-Forwarded-For": "192.0.2.1"}, status: 403},
		{name: "another PUT", method: "PUT", path: "/latest/meta-data/instance-id", status: 405},
		{name: "a POST", method: "POST", path: "/latest/meta-data/instance-id", status: 405},
		{name: "without a token", method: "GET", path: "/latest/meta-data/instance-id", status: 401},
		{name: "with a token", method: "GET", path: "/latest/meta-data/instance-id", token: true, status: 200},
		{name: "with a token that has expired", method: "GET", path: "/latest/meta-data/instance-id", token: true, later: time.Minute, status: 401},
		{name: "with a token of its own making", method: "GET", path: "/latest/meta-data/instance-id", header: map[string]string{imdsToken: "x"}, status: 401},
		{name: "version 1", method: "GET", path: "/latest/meta-data/instance-id", knob: (*Instance).AllowV1, status: 200},
		{name: "version 1 with a wrong token", method: "GET", path: "/latest/meta-data/instance-id", header: map[string]string{imdsToken: "x"}, knob: (*Instance).AllowV1, status: 401},
		{name: "switched off", method: "PUT", path: "/latest/api/token", header: map[string]string{imdsTTL: "60"}, knob: (*Instance).Disable, status: 403},
		{name: "no such page", method: "GET", path: "/latest/meta-data/none", token: true, status: 404},
		{name: "another role", method: "GET", path: "/latest/meta-data/iam/security-credentials/other", token: true, status: 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer c.SetClockOffset(0)
			i := c.Instance(testRole)
			if test.knob != nil {
				test.knob(i)
			}
			ask := func(method, path string, header map[string]string) (int, string) {
				r, _ := http.NewRequestWithContext(t.Context(), method, i.URL()+path, http.NoBody)
				for name, value := range header {
					r.Header.Set(name, value)
				}
				answer, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer answer.Body.Close()
				body := make([]byte, 1000)
				n, _ := answer.Body.Read(body)
				return answer.StatusCode, string(body[:n])
			}
			header := test.header
			if test.token {
				_, token := ask("PUT", "/latest/api/token", map[string]string{imdsTTL: "60"})
				header = map[string]string{imdsToken: token}
			}
			c.SetClockOffset(test.later)
			if status, _ := ask(test.method, test.path, header); status != test.status {
				t.Errorf("%d, not %d", status, test.status)
			}
		})
	}
}

func TestMetadataThatDoesNotAnswer(t *testing.T) {
	get := func(t *testing.T, i *Instance, limit time.Duration) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := i.client().GetRegion(ctx, &imds.GetRegionInput{})
		return err
	}
	t.Run("beyond the hop limit", func(t *testing.T) {
		c := New(t)
		i := c.Instance(testRole)
		i.ExceedHopLimit()
		if err := get(t, i, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Error(err)
		}
		if r := c.last(t); r.Operation != "PUT /latest/api/token" || r.Status != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("absent", func(t *testing.T) {
		c := New(t)
		i := c.Instance(testRole)
		i.Absent()
		if err := get(t, i, 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Error(err)
		}
		if n := len(c.Requests()); runtime.GOOS == "linux" && n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})
	t.Run("refused", func(t *testing.T) {
		i := New(t).Instance(testRole)
		i.Refuse()
		if err := get(t, i, time.Minute); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Error(err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		i := New(t).Instance(testRole)
		i.Slow(20 * time.Millisecond)
		start := time.Now()
		if err := get(t, i, time.Minute); err != nil || time.Since(start) < 40*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestContainer(t *testing.T) {
	c := New(t)
	c.AddRole(Role{ARN: testRole})
	k := c.Container(testRole)
	retrieve := func(token string) (aws.Credentials, error) {
		return endpointcreds.New(k.URL(), func(o *endpointcreds.Options) {
			o.AuthorizationToken, o.Retryer, o.HTTPClient = token, aws.NopRetryer{}, &http.Client{}
		}).Retrieve(t.Context())
	}
	token, err := os.ReadFile(k.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	got, err := retrieve(string(token))
	if err != nil {
		t.Fatal(err)
	}
	who, err := sts.NewFromConfig(c.config(t, Keys{got.AccessKeyID, got.SecretAccessKey, got.SessionToken}, "eu-west-1")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || !strings.HasPrefix(*who.Arn, "arn:aws:sts::111122223333:assumed-role/puller/") {
		t.Errorf("%v, %v", who, err)
	}
	for name, token := range map[string]string{"none": "", "wrong": "wrong"} {
		if _, err := retrieve(token); err == nil {
			t.Errorf("a token is taken that is %s", name)
		}
	}
	k.Rotate()
	if _, err := retrieve(string(token)); err == nil {
		t.Error("the token before is still taken")
	}
	if want := "AWS_CONTAINER_AUTHORIZATION_TOKEN=" + readFile(t, k.TokenFile()); !slices.Contains(k.EnvironToken(), want) {
		t.Error("the environment has another token")
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

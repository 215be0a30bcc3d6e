package cloud

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// jsonCall is one request to an API of the JSON protocol (https://docs.aws.amazon.com/AmazonECR/latest/APIReference/).
type jsonCall struct {
	c      *Cloud
	e      endpoint
	caller principal
	input  []byte
}

type jsonOperation func(*jsonCall) (any, *refusal)

// jsonAPI is an API of the JSON 1.1 protocol (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html).
func (c *Cloud) jsonAPI(e endpoint, target string, operations map[string]jsonOperation) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("X-Amzn-Requestid", requestID())
		prefix, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		entryOf(r).operation(operation)
		if c.faulty(w, r, e.service, operation, func(f Fault) { writeRefusal(w, r, jsonFault(f)) }) {
			return
		}
		result, no := c.callJSON(w, r, e, prefix == target, operations[operation])
		if no != nil {
			writeRefusal(w, r, *no)
			return
		}
		writeJSON(w, http.StatusOK, result)
	})
}

// bodyOf reads a request's body, a megabyte at most. A client that goes away in the middle of it gets no answer.
func bodyOf(w http.ResponseWriter, r *http.Request) (body []byte, tooLarge bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, true
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return body, false
}

func (c *Cloud) callJSON(w http.ResponseWriter, r *http.Request, e endpoint, known bool, operation jsonOperation) (any, *refusal) {
	body, tooLarge := bodyOf(w, r)
	if tooLarge {
		return nil, &refusal{http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException", "the request is too large"}
	}
	if !known || operation == nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		return nil, &refusal{http.StatusBadRequest, "UnknownOperationException", ""}
	}
	caller, no := c.verify(r, body, e, jsonSigning())
	if no != nil {
		return nil, no
	}
	entryOf(r).principal(caller.arn)
	return operation(&jsonCall{c, e, caller, body})
}

// writeRefusal writes a refusal of the JSON protocol.
func writeRefusal(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]string{"__type": no.code, "message": no.message})
}

// jsonFault is a fault as ECR words it.
func jsonFault(f Fault) refusal {
	switch {
	case f.Code != "":
		return refusal{cmp.Or(f.Status, http.StatusBadRequest), f.Code, "a fault on demand"}
	case f.Status == http.StatusServiceUnavailable:
		return refusal{f.Status, "ServiceUnavailableException", "The service is unavailable."}
	case f.Status >= http.StatusInternalServerError:
		return refusal{f.Status, "ServerException", "These errors are usually caused by a server-side issue."}
	default:
		return refusal{cmp.Or(f.Status, http.StatusBadRequest), "ThrottlingException", "Rate exceeded"}
	}
}

// read decodes the operation's input.
func (call *jsonCall) read(into any) *refusal {
	if err := json.Unmarshal(call.input, into); err != nil {
		return &refusal{http.StatusBadRequest, "SerializationException", "the input is not what the operation takes"}
	}
	return nil
}

// allowed is nil if the caller's own policies allow an action.
func (call *jsonCall) allowed(action, resource string) *refusal {
	if call.c.may(call.caller, action, resource) {
		return nil
	}
	return deniedJSON(call.caller, action, resource, "because no identity-based policy allows the "+action+" action")
}

func deniedJSON(p principal, action, resource, why string) *refusal {
	return &refusal{http.StatusBadRequest, "AccessDeniedException", "User: " + p.arn + " is not authorized to perform: " + action + " on resource: " + resource + " " + why}
}

func (c *Cloud) ecrOperations() map[string]jsonOperation {
	return map[string]jsonOperation{
		"GetAuthorizationToken":         ecrToken,
		"DescribeRepositories":          describeRepositories,
		"DescribePullThroughCacheRules": describePullThroughCacheRules,
		"BatchGetImage":                 batchGetImage,
		"GetDownloadUrlForLayer":        getDownloadURLForLayer,
		"BatchCheckLayerAvailability":   batchCheckLayerAvailability,
	}
}

func (c *Cloud) ecrPublicOperations() map[string]jsonOperation {
	return map[string]jsonOperation{"GetAuthorizationToken": ecrPublicToken}
}

// tokenLife is how long a registry password is good for, as AWS documents it.
const tokenLife = 12 * time.Hour

// authorization gives a caller a password for the registries of the endpoint's region.
func (call *jsonCall) authorization(public bool) map[string]any {
	text := base64.StdEncoding.EncodeToString([]byte(random(600)))
	expires := call.c.Now().Add(tokenLife)
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.c.aws.passwords[text] = &password{call.caller, call.e.region, public, expires}
	return map[string]any{
		"authorizationToken": base64.StdEncoding.EncodeToString([]byte("AWS:" + text)), "expiresAt": float64(expires.UnixMilli()) / 1000,
	}
}

var accountPattern = regexp.MustCompile(`^\d{12}$`)

// ecrToken: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html
func ecrToken(call *jsonCall) (any, *refusal) {
	var input struct{ RegistryIDs []string }
	if no := call.read(&input); no != nil {
		return nil, no
	}
	if no := call.allowed("ecr:GetAuthorizationToken", "*"); no != nil {
		return nil, no
	}
	if len(input.RegistryIDs) == 0 {
		input.RegistryIDs = []string{call.caller.account()}
	}
	if len(input.RegistryIDs) > 10 {
		return nil, invalidParameter("registryIds")
	}
	var all []map[string]any
	for _, id := range input.RegistryIDs {
		if !accountPattern.MatchString(id) {
			return nil, invalidParameter("registryIds")
		}
		data := call.authorization(false)
		data["proxyEndpoint"] = "https://" + id + ".dkr.ecr." + call.e.region + "." + partitionOf(call.e.region).suffix
		all = append(all, data)
	}
	return map[string]any{"authorizationData": all}, nil
}

// ecrPublicToken: https://docs.aws.amazon.com/AmazonECRPublic/latest/APIReference/API_GetAuthorizationToken.html
func ecrPublicToken(call *jsonCall) (any, *refusal) {
	for _, action := range []string{"ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"} {
		if no := call.allowed(action, "*"); no != nil {
			return nil, no
		}
	}
	return map[string]any{"authorizationData": call.authorization(true)}, nil
}

func invalidParameter(name string) *refusal {
	return &refusal{http.StatusBadRequest, "InvalidParameterException", "Invalid parameter at '" + name + "' failed to satisfy constraint: 'Invalid registry id'"}
}

// onRepository reads which repository a call is about, and lets it pass if the caller may do this to it.
func (call *jsonCall) onRepository(action string, into any) (*registry, *Repository, *refusal) {
	var input struct{ RegistryID, RepositoryName string }
	if no := call.read(&input); no != nil {
		return nil, nil, no
	}
	if no := call.read(into); no != nil {
		return nil, nil, no
	}
	if input.RegistryID != "" && !accountPattern.MatchString(input.RegistryID) {
		return nil, nil, invalidParameter("registryId")
	}
	account := cmp.Or(input.RegistryID, call.caller.account())
	g := call.c.registryOf(call.e.region, account)
	resource := repositoryARN(call.e.region, account, input.RepositoryName)
	repository := g.repository(input.RepositoryName)
	if repository == nil {
		if no := call.allowed(action, resource); no != nil {
			return nil, nil, no
		}
		if account != call.caller.account() { // a policy of another account's, and there is none
			return nil, nil, deniedJSON(call.caller, action, resource, "because no resource-based policy allows the "+action+" action")
		}
		return nil, nil, &refusal{
			http.StatusBadRequest, "RepositoryNotFoundException",
			"The repository with name '" + input.RepositoryName + "' does not exist in the registry with id '" + account + "'",
		}
	}
	if !call.c.mayOnRepository(call.caller, g, repository, action) {
		policy := "identity"
		if account != call.caller.account() {
			policy = "resource"
		}
		return nil, nil, deniedJSON(call.caller, action, resource, "because no "+policy+"-based policy allows the "+action+" action")
	}
	return g, repository, nil
}

func repositoryARN(region, account, name string) string {
	return "arn:" + partitionOf(region).name + ":ecr:" + region + ":" + account + ":repository/" + name
}

// mayOnRepository is IAM's decision: in the registry's own account either policy suffices, elsewhere both must allow it.
func (c *Cloud) mayOnRepository(p principal, g *registry, repository *Repository, action string) bool {
	identity := c.may(p, action, repositoryARN(g.region, g.account, repository.Name))
	named := notNamed
	for _, entry := range repository.Pull {
		named = max(named, names(entry, p))
	}
	if p.account() == g.account && p.partition() == g.partition {
		return identity || named == namedDirectly
	}
	return identity && named != notNamed
}

func batchGetImage(call *jsonCall) (any, *refusal) {
	type imageID struct {
		ImageDigest string `json:"imageDigest,omitempty"`
		ImageTag    string `json:"imageTag,omitempty"`
	}
	var input struct{ ImageIDs []imageID }
	g, repository, no := call.onRepository("ecr:BatchGetImage", &input)
	if no != nil {
		return nil, no
	}
	images := []any{}
	for _, id := range input.ImageIDs {
		id.ImageDigest = digest(manifest)
		images = append(images, map[string]any{
			"imageId": id, "imageManifest": manifest, "imageManifestMediaType": manifestType, "registryId": g.account, "repositoryName": repository.Name,
		})
	}
	return map[string]any{"images": images, "failures": []any{}}, nil
}

func getDownloadURLForLayer(call *jsonCall) (any, *refusal) {
	var input struct{ LayerDigest string }
	g, repository, no := call.onRepository("ecr:GetDownloadUrlForLayer", &input)
	if no != nil {
		return nil, no
	}
	if input.LayerDigest != digest(imageConfig) {
		return nil, &refusal{
			http.StatusBadRequest, "LayersNotFoundException",
			"The layer with digest '" + input.LayerDigest + "' does not exist in the repository with name '" + repository.Name + "' in registry with id '" + g.account + "'",
		}
	}
	return map[string]any{"layerDigest": input.LayerDigest, "downloadUrl": "https://layers.invalid/" + input.LayerDigest}, nil
}

func batchCheckLayerAvailability(call *jsonCall) (any, *refusal) {
	var input struct{ LayerDigests []string }
	if _, _, no := call.onRepository("ecr:BatchCheckLayerAvailability", &input); no != nil {
		return nil, no
	}
	layers, failures := []any{}, []any{}
	for _, d := range input.LayerDigests {
		if d == digest(imageConfig) {
			layers = append(layers, map[string]any{"layerDigest": d, "layerAvailability": "AVAILABLE", "layerSize": len(imageConfig)})
			continue
		}
		failures = append(failures, map[string]any{"layerDigest": d, "failureCode": "MissingLayerDigest", "failureReason": "The layer digest does not exist."})
	}
	return map[string]any{"layers": layers, "failures": failures}, nil
}

func describeRepositories(call *jsonCall) (any, *refusal) {
	var input struct {
		RegistryID      string
		RepositoryNames []string
	}
	if no := call.read(&input); no != nil {
		return nil, no
	}
	account := cmp.Or(input.RegistryID, call.caller.account())
	g, all := call.c.registryOf(call.e.region, account), []any{}
	wanted := input.RepositoryNames
	if len(wanted) == 0 {
		if no := call.allowed("ecr:DescribeRepositories", repositoryARN(call.e.region, account, "*")); no != nil {
			return nil, no
		}
		wanted = g.names()
	}
	for _, name := range wanted {
		one := *call
		one.input = fmt.Appendf(nil, `{"registryId":%q,"repositoryName":%q}`, account, name)
		_, repository, no := one.onRepository("ecr:DescribeRepositories", &struct{}{})
		if no != nil {
			return nil, no
		}
		all = append(all, map[string]any{
			"registryId": account, "repositoryName": repository.Name, "repositoryArn": repositoryARN(call.e.region, account, repository.Name),
			"repositoryUri": account + ".dkr.ecr." + call.e.region + "." + partitionOf(call.e.region).suffix + "/" + repository.Name,
		})
	}
	return map[string]any{"repositories": all}, nil
}

func describePullThroughCacheRules(call *jsonCall) (any, *refusal) {
	var input struct {
		RegistryID            string
		EcrRepositoryPrefixes []string
	}
	if no := call.read(&input); no != nil {
		return nil, no
	}
	if no := call.allowed("ecr:DescribePullThroughCacheRules", "*"); no != nil {
		return nil, no
	}
	account := cmp.Or(input.RegistryID, call.caller.account())
	if account != call.caller.account() {
		return nil, deniedJSON(call.caller, "ecr:DescribePullThroughCacheRules", "*", "because no resource-based policy allows the ecr:DescribePullThroughCacheRules action")
	}
	g, rules := call.c.registryOf(call.e.region, account), []any{}
	for _, prefix := range g.rules() {
		if len(input.EcrRepositoryPrefixes) == 0 || slices.Contains(input.EcrRepositoryPrefixes, prefix) {
			rules = append(rules, map[string]any{"ecrRepositoryPrefix": prefix, "registryId": account, "upstreamRegistryUrl": "upstream.example.com"})
		}
	}
	if len(input.EcrRepositoryPrefixes) > len(rules) {
		return nil, &refusal{http.StatusBadRequest, "PullThroughCacheRuleNotFoundException", "the registry with id '" + account + "' has no such pull through cache rule"}
	}
	return map[string]any{"pullThroughCacheRules": rules}, nil
}

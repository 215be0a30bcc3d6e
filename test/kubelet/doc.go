// Package kubelet shows that the kubelet agrees with the broker: the code of k8s.io/kubernetes/pkg/credentialprovider reads the configurations, runs the plugins, caches what they say and
// looks up the credentials, once with one entry for each provider and once with the broker's entry in their place. There is nothing here to import.
//
// Three layers, from fast to real:
//
//   - the broker's own packages within the test's process, behind the kubelet's code (TestAgreement and its kin; thousands of provider sets, -sets for more);
//   - the built binary and its backends, run by the kubelet's code (TestBinary…);
//   - single rules, function against function (TestMatching…, FuzzMatch).
//
// Every failure prints the seed that repeats it: go test -run NAME -seed N.
package kubelet

// Package kubelet is the kubelet's documents: the request it writes to a credential provider, the response it takes, and the CredentialProviderConfig that
// names its providers; besides, the two translations between that configuration and the broker's own (Entries, Migrate). It knows the documents' rules and nothing of
// what the broker does with them.
//
// The types are written down here, not taken from k8s.io/kubelet, because this code runs on every image pull and the initialisation of k8s.io/apimachinery
// costs more than all the rest; tests hold each of them against the kubelet's own types and decoder.
package kubelet

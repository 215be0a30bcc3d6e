// Package install puts a release onto a host that belongs to somebody else, from a container that has a directory of the host's and little more: the programs, verified, in a directory for
// each version, one link that is swapped when everything behind it is in place, and likewise the configuration. It can be ended at any moment, by a signal or for want of space: what was
// installed goes on working, and the next run finishes. It knows nothing of clusters, and does not touch the kubelet.
//
//	DIR/versions/VERSION-DIGEST/   credential-broker, backends/*: what the manifest names
//	DIR/current                    link to the version that is used
//	DIR/configs/DIGEST/            the configuration's files
//	DIR/config                     link to the configuration that is used
//	DIR/bin/credential-broker      link to the program behind current, one for each of the kubelet's entries: the kubelet's bin directory, if it has no other
//	DIR/kubelet.yaml               the kubelet's CredentialProviderConfig
package install

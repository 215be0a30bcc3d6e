// Package install puts a release onto a host that belongs to somebody else, from a container that has a directory of the host's and little more: the programs, verified, in a directory for
// each version, the configuration likewise, and one link that is swapped when everything behind it is in place. It can be ended at any moment, by a signal or for want of space: what was
// installed goes on working, and the next run finishes. It knows nothing of clusters, and does not touch the kubelet.
//
//	DIR/versions/VERSION-DIGEST/   credential-broker, backends/*: what the manifest names
//	DIR/configs/DIGEST/            the configuration's files
//	DIR/pairs/VERSION+CONFIG/      links to a version and to the configuration that it is used with
//	DIR/in-use                     link to the pair that is used: all that is swapped
//	DIR/current, DIR/config        links to the version and to the configuration that are used, through in-use
//	DIR/bin/credential-broker      link to the program behind current, one for each of the kubelet's entries: the kubelet's bin directory, if it has no other
//	DIR/kubelet.yaml               the kubelet's CredentialProviderConfig
package install

package leasehold

import (
	"os/exec"
	"strings"
	"testing"
)

// A program that uses the package links no API types but those of Leases: client-go's typed clients and its scheme
// would add 20 MB.
func TestLightToLink(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skip("no go command: ", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{"k8s.io/client-go/kubernetes", "k8s.io/client-go/applyconfigurations",
			"k8s.io/client-go/tools/record", "k8s.io/api/core/"} {
			if strings.HasPrefix(dep, heavy) {
				t.Errorf("links %s", dep)
			}
		}
	}
}

package leasehold

import (
	"fmt"
	"testing"
	"time"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A right that a member lacks is named with a rule for all Leases: each member has a name of its own.
func TestSpreadForbidden_G11(t *testing.T) {
	for _, verb := range []string{"get", "list", "watch", "create", "patch", "delete"} {
		t.Run(verb, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				f.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == verb {
						return leasetest.Fault{Err: leasetest.Forbidden(r)}
					}
					return leasetest.Fault{}
				})
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(time.Second)
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(2 * I)
				b.quit()
				f.sleep(4 * D)
				const rule = `a Role in namespace \"default\" needs the rule {apiGroups: [\"coordination.k8s.io\"], ` +
					`resources: [\"leases\"], `
				if f.logged(rule+fmt.Sprintf(`verbs: [\"%s\"]`, verb)) == 0 {
					f.Error("the rule is not in the log")
				}
				if f.logged(rule+"resourceNames") > 0 {
					f.Error("the rule is for a Lease whose name is another each time")
				}
				a.quit()
			})
		})
	}
}

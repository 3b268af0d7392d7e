// Package rights recognises that a right about Leases is missing, and says which rule of RBAC gives it.
package rights

import (
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Missing reports whether err is RBAC's refusal of verb. Admission and a namespace that is being deleted refuse with
// 403 too, and no Role helps against those.
func Missing(err error, verb string) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), " cannot "+verb+" resource ")
}

// Rule returns err with the rule that gives the right that is missing: in one namespace, or in all if it is "". name is
// that of the Lease, "" where the right is about more than one.
func Rule(err error, namespace, name, verb string) error {
	role, names := "a ClusterRole", ""
	if namespace != "" {
		role = fmt.Sprintf("a Role in namespace %q", namespace)
	}
	if name != "" && verb != "create" { // RBAC cannot restrict create to a name
		names = fmt.Sprintf(" resourceNames: [%q],", name)
	}
	return fmt.Errorf("%w; %s needs the rule {apiGroups: [%q], resources: [%q],%s verbs: [%q]}",
		err, role, coordinationv1.GroupName, "leases", names, verb)
}

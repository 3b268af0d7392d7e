package main

import (
	"errors"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A 403 that no Role mends does not advise one.
func TestAdvise(t *testing.T) {
	const of = ` resource "leases" in API group "coordination.k8s.io" `
	for _, tt := range []struct {
		verb, namespace, name, text string
		want                        string // "" for no advice
	}{
		{"get", "web", "job", `User "u" cannot get` + of + `in the namespace "web"`,
			`a Role in namespace "web" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ["leases"], ` +
				`resourceNames: ["job"], verbs: ["get"]}`},
		{"create", "web", "job", `User "u" cannot create` + of + `in the namespace "web"`,
			`a Role in namespace "web" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ["leases"], ` +
				`verbs: ["create"]}`},
		{"list", "", "", `User "u" cannot list` + of + `at the cluster scope`,
			`a ClusterRole needs the rule {apiGroups: ["coordination.k8s.io"], resources: ["leases"], ` +
				`verbs: ["list"]}`},
		{"create", "web", "job", `unable to create new content in namespace web because it is being terminated`, ""},
		{"patch", "web", "job", `admission webhook "no.example.com" denied the request: no`, ""},
	} {
		err := apierrors.NewForbidden(schema.GroupResource{Resource: "leases"}, "job", errors.New(tt.text))
		got := advise(err, tt.verb, tt.namespace, tt.name)
		if !strings.HasPrefix(got.Error(), err.Error()) || !apierrors.IsForbidden(got) {
			t.Errorf("%s: it says %v", tt.text, got)
		}
		advice := strings.TrimPrefix(got.Error(), err.Error())
		if tt.want == "" && advice != "" || tt.want != "" && advice != "; "+tt.want {
			t.Errorf("%s: the advice is %q, want %q", tt.text, advice, tt.want)
		}
	}
}

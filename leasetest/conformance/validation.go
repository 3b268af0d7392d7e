package conformance

import (
	"errors"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func statusOf(err error) metav1.Status {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status()
	}
	return metav1.Status{Details: &metav1.StatusDetails{}}
}

// rejected is a case in which a lease is rejected when it is created and, unless its name is at fault, when it is
// updated.
func rejected(what string, spoil func(*coordinationv1.Lease), texts ...string) Case {
	return Case{what + " is invalid", func(s *session) {
		in := held()
		spoil(in)
		_, err := s.Create(s.ctx, in, create)
		s.wantError(err, 422, metav1.StatusReasonInvalid, append(texts, "Lease.coordination.k8s.io")...)
		if in.Name != name {
			return
		}
		a := s.held()
		in = a.DeepCopy()
		spoil(in)
		_, err = s.Update(s.ctx, in, update)
		s.wantError(err, 422, metav1.StatusReasonInvalid,
			append(texts, `Lease.coordination.k8s.io "lease" is invalid`)...)
		s.wantSame(a, s.get())
	}}
}

var validationCases = []Case{
	rejected("a duration of 0", func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = ptr(int32(0)) },
		"spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"),
	rejected("a negative duration", func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = ptr(int32(-1)) },
		"spec.leaseDurationSeconds: Invalid value: -1: must be greater than 0"),
	rejected("a negative number of transitions", func(l *coordinationv1.Lease) {
		l.Spec.LeaseTransitions = ptr(int32(-1))
	},
		"spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"),
	rejected("a label without a valid key", func(l *coordinationv1.Lease) { l.Labels = map[string]string{"-": "1"} },
		"metadata.labels: Invalid value: \"-\": name part must consist of"),
	rejected("a label without a valid value", func(l *coordinationv1.Lease) {
		l.Labels = map[string]string{"a": "no spaces"}
	},
		"metadata.labels: Invalid value: \"no spaces\": a valid label must be"),
	rejected("an annotation without a valid key", func(l *coordinationv1.Lease) {
		l.Annotations = map[string]string{"a b": "1"}
	},
		"metadata.annotations: Invalid value: \"a b\""),
	rejected("an owner without a uid", func(l *coordinationv1.Lease) {
		l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p"}}
	}, "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"),
	rejected("an upper-case name", func(l *coordinationv1.Lease) { l.Name = "Lease" },
		"metadata.name: Invalid value: \"Lease\": a lowercase RFC 1123 subdomain must consist of"),
	rejected("a name of 254 characters", func(l *coordinationv1.Lease) { l.Name = strings.Repeat("a", 254) },
		"must be no more than 253"),
	rejected("no name", func(l *coordinationv1.Lease) { l.Name = "" },
		"metadata.name: Required value: name or generateName is required"),
	{"several faults are reported at once", func(s *session) {
		in := held()
		in.Spec.LeaseDurationSeconds, in.Spec.LeaseTransitions = ptr(int32(0)), ptr(int32(-1))
		_, err := s.Create(s.ctx, in, create)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "[spec.leaseDurationSeconds:", ", spec.leaseTransitions:")
		if causes := statusOf(err).Details.Causes; len(causes) != 2 {
			s.Errorf("got causes %s, want 2", show(causes))
		}
	}},
	{"patches are validated", func(s *session) {
		a := s.held()
		_, err := s.merge(`{"spec":{"leaseDurationSeconds":0}}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid,
			"spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0")
		_, err = s.merge(`{"metadata":{"resourceVersion":"1"},"spec":{"leaseDurationSeconds":0}}`)
		s.wantStale(err)
		s.wantSame(a, s.get())
	}},
	{"a name of 253 characters is valid", func(s *session) {
		in := held()
		in.Name = strings.Repeat("a", 253)
		s.must(s.Create(s.ctx, in, create))
	}},
	{"a holder of 10,000 characters is valid", func(s *session) {
		in := held()
		in.Spec.HolderIdentity = ptr(strings.Repeat("ä", 10000))
		s.want("holder", s.must(s.Create(s.ctx, in, create)).Spec.HolderIdentity, in.Spec.HolderIdentity)
	}},
	{"a field manager has at most 128 bytes", func(s *session) {
		_, err := s.Create(s.ctx, held(), metav1.CreateOptions{FieldManager: strings.Repeat("a", 129)})
		s.wantError(err, 422, metav1.StatusReasonInvalid, "fieldManager: Too long: may not be more than 128 bytes")
		s.must(s.Create(s.ctx, held(), metav1.CreateOptions{FieldManager: strings.Repeat("a", 128)}))
		_, err = s.apply(strings.Repeat("a", 129), true, `"metadata":{"name":"lease"}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "fieldManager: Too long")
	}},
	{"a field manager is printable", func(s *session) {
		_, err := s.Create(s.ctx, held(), metav1.CreateOptions{FieldManager: "a\nb"})
		s.wantError(err, 422, metav1.StatusReasonInvalid, "fieldManager: Invalid value:",
			"invalid character U+000A (at position 1)")
	}},
}

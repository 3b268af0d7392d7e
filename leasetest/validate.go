package leasetest

import (
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	metadataPath = field.NewPath("metadata")
	specPath     = field.NewPath("spec")
)

// validateNew validates a lease to be created as the server does.
func validateNew(l *coordinationv1.Lease) error {
	errs := validation.ValidateObjectMeta(&l.ObjectMeta, true, validation.NameIsDNSSubdomain, metadataPath)
	errs = append(errs, validateSpec(&l.Spec)...)
	return invalid(l.Name, errs)
}

// validateChange validates a lease to replace old as the server does. Unchanged metadata that was valid before is not
// validated again.
func validateChange(l, old *coordinationv1.Lease, metadata bool) error {
	var errs field.ErrorList
	if metadata {
		errs = append(errs, validation.ValidateObjectMeta(&l.ObjectMeta, true, pathSegment, metadataPath)...)
		errs = append(errs, validation.ValidateObjectMetaUpdate(&l.ObjectMeta, &old.ObjectMeta, metadataPath)...)
	}
	errs = append(errs, validateSpec(&l.Spec)...)
	return invalid(l.Name, errs)
}

func invalid(name string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(leaseGVK.GroupKind(), name, errs)
}

func pathSegment(name string, prefix bool) []string {
	if prefix {
		return content.IsPathSegmentPrefix(name)
	}
	return content.IsPathSegmentName(name)
}

func validateSpec(spec *coordinationv1.LeaseSpec) (errs field.ErrorList) {
	if d := spec.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(specPath.Child("leaseDurationSeconds"), d, "must be greater than 0"))
	}
	if n := spec.LeaseTransitions; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(specPath.Child("leaseTransitions"), n, "must be greater than or equal to 0"))
	}
	if spec.Strategy != nil {
		errs = append(errs, validateStrategy(*spec.Strategy, specPath.Child("strategy"))...)
	}
	if p := spec.PreferredHolder; p != nil && *p != "" && (spec.Strategy == nil || *spec.Strategy == "") {
		errs = append(errs, field.Forbidden(specPath.Child("preferredHolder"),
			"may only be specified if `strategy` is defined"))
	}
	return errs
}

func validateStrategy(strategy coordinationv1.CoordinatedLeaseStrategy, at *field.Path) (errs field.ErrorList) {
	known := []coordinationv1.CoordinatedLeaseStrategy{coordinationv1.OldestEmulationVersion}
	if !strings.Contains(string(strategy), "/") {
		if !slices.Contains(known, strategy) {
			errs = append(errs, field.NotSupported(at.Child("strategy"), strategy, known))
		}
		return errs
	}
	for _, msg := range utilvalidation.IsQualifiedName(string(strategy)) {
		errs = append(errs, field.Invalid(at.Child("strategy"), strategy, msg))
	}
	return errs
}

// dropGated removes the fields that the server drops silently while its feature CoordinatedLeaderElection is off (the
// default): strategy and preferredHolder, unless the lease had them before.
func dropGated(l, old *coordinationv1.Lease) {
	if old.Spec.Strategy == nil {
		l.Spec.Strategy = nil
	}
	if old.Spec.PreferredHolder == nil {
		l.Spec.PreferredHolder = nil
	}
}

// sameMetadata reports whether the metadata that a client may change are equal.
func sameMetadata(a, b *metav1.ObjectMeta) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && a.GenerateName == b.GenerateName &&
		sameMap(a.Labels, b.Labels) && sameMap(a.Annotations, b.Annotations) &&
		slices.EqualFunc(a.OwnerReferences, b.OwnerReferences, sameOwner) &&
		slices.Equal(a.Finalizers, b.Finalizers)
}

func sameMap(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func sameOwner(a, b metav1.OwnerReference) bool {
	return a.APIVersion == b.APIVersion && a.Kind == b.Kind && a.Name == b.Name && a.UID == b.UID &&
		same(a.Controller, b.Controller) && same(a.BlockOwnerDeletion, b.BlockOwnerDeletion)
}

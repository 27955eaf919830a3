package server

import "github.com/nextstack/nextstack/api"

func (s *Server) routeNetwork() {
	readable[api.VPC](s)
	creatable(s, api.KindVPC, "", Admission.CreateVPC)
	updatable(s, api.KindVPC, Admission.UpdateVPC)
	deletable(s, api.KindVPC, "It must have no subnets.", Admission.DeleteVPC)

	readable[api.Subnet](s)
	creatable(s, api.KindSubnet, "", Admission.CreateSubnet)
	updatable(s, api.KindSubnet, Admission.UpdateSubnet)
	deletable(s, api.KindSubnet, "It must have no ports.", Admission.DeleteSubnet)

	readable[api.Port](s)
	creatable(s, api.KindPort, "A port that belongs to no VM. The ports of a VM are made with it.", Admission.CreatePort)
	updatable(s, api.KindPort, Admission.UpdatePort)
	deletable(s, api.KindPort, "It must belong to no VM.", Admission.DeletePort)

	readable[api.SecurityGroup](s)
	creatable(s, api.KindSecurityGroup, "", Admission.CreateSecurityGroup)
	updatable(s, api.KindSecurityGroup, Admission.UpdateSecurityGroup)
	deletable(s, api.KindSecurityGroup, "No port must carry it.", Admission.DeleteSecurityGroup)
}

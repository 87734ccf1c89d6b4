//! Roles, and what each may do.

use std::fmt;
use std::str::FromStr;

/// A name that is no role of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role")]
pub struct UnknownRole(String);

macro_rules! roles {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $role:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $role,)+ }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$role,)+];

            /// The spelling in the database and the REST API.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$role => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownRole;

            fn from_str(text: &str) -> Result<Self, UnknownRole> {
                match text { $($text => Ok(Self::$role),)+ other => Err(UnknownRole(other.to_owned())) }
            }
        }
    };
}

roles! {
    /// A user's role in the cluster.
    SystemRole {
        /// Everything, in all tenants.
        Admin = "sys_admin",
        /// Nothing by itself but what everybody may.
        Default = "default",
    }
}

roles! {
    /// A user's role in a tenant.
    TenantRole {
        /// Administers the tenant.
        Manager = "manager",
        /// Full work.
        User = "user",
        /// Runs deployments, brings no blueprints.
        Operations = "operations",
        /// Looks.
        Viewer = "viewer",
    }
}

/// Who has a permission, administrators of the cluster aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// Whoever is logged in.
    Everyone,
    /// Whoever is logged in, except as `operations`.
    Tokens,
    /// Every role in the tenant.
    Readers,
    /// Who works with deployments.
    Operators,
    /// Who brings blueprints, plugins and secrets.
    Authors,
    /// Who administers the tenant.
    Managers,
    /// Administrators of the cluster.
    Admins,
}

macro_rules! permissions {
    ($($holders:ident { $($permission:ident = $text:literal,)+ })+) => {
        /// Something that a role may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Permission { $($($permission,)+)+ }

        impl Permission {
            /// Every one.
            pub const ALL: &'static [Self] = &[$($(Self::$permission,)+)+];

            /// Its name in the REST API.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($(Self::$permission => $text,)+)+ }
            }

            fn holders(self) -> Holders {
                match self { $($(Self::$permission)|+ => Holders::$holders,)+ }
            }
        }
    };
}

permissions! {
    Everyone {
        BrokerGet = "broker_get",
        DbNodesGet = "db_nodes_get",
        IdentityProviderGet = "identity_provider_get",
        LdapStatusGet = "ldap_status_get",
        LicenseList = "license_list",
        MaintenanceModeGet = "maintenance_mode_get",
        ManagerConfigGet = "manager_config_get",
        ProviderContextCreate = "provider_context_create",
        ProviderContextGet = "provider_context_get",
        StatusGet = "status_get",
        TenantList = "tenant_list",
        TokenGet = "token_get",
        UserGetSelf = "user_get_self",
        VersionGet = "version_get",
    }
    Tokens {
        CreateToken = "create_token",
        DeleteToken = "delete_token",
        ListToken = "list_token",
    }
    Readers {
        BlueprintDownload = "blueprint_download",
        BlueprintGet = "blueprint_get",
        BlueprintList = "blueprint_list",
        ClusterStatusGet = "cluster_status_get",
        DeploymentCapabilities = "deployment_capabilities",
        DeploymentGet = "deployment_get",
        DeploymentList = "deployment_list",
        DeploymentGroupGet = "deployment_group_get",
        DeploymentGroupList = "deployment_group_list",
        DeploymentModificationGet = "deployment_modification_get",
        DeploymentModificationList = "deployment_modification_list",
        DeploymentModificationOutputs = "deployment_modification_outputs",
        DeploymentUpdateGet = "deployment_update_get",
        DeploymentUpdateList = "deployment_update_list",
        EventList = "event_list",
        ExecutionGet = "execution_get",
        ExecutionList = "execution_list",
        ExecutionShouldStart = "execution_should_start",
        ExecutionGroupGet = "execution_group_get",
        ExecutionGroupList = "execution_group_list",
        ExecutionScheduleGet = "execution_schedule_get",
        ExecutionScheduleList = "execution_schedule_list",
        FileServerAuth = "file_server_auth",
        FilterGet = "filter_get",
        FilterList = "filter_list",
        InterDeploymentDependencyGet = "inter_deployment_dependency_get",
        InterDeploymentDependencyList = "inter_deployment_dependency_list",
        LabelsList = "labels_list",
        ManagerGet = "manager_get",
        NodeList = "node_list",
        NodeInstanceGet = "node_instance_get",
        NodeInstanceList = "node_instance_list",
        Operations = "operations",
        AgentGet = "agent_get",
        AgentList = "agent_list",
        PluginDownload = "plugin_download",
        PluginGet = "plugin_get",
        PluginList = "plugin_list",
        PluginsUpdateGet = "plugins_update_get",
        PluginsUpdateList = "plugins_update_list",
        SecretGet = "secret_get",
        SecretList = "secret_list",
        SecretsProviderGet = "secrets_provider_get",
        SecretsProviderList = "secrets_provider_list",
        SiteGet = "site_get",
        SiteList = "site_list",
    }
    Operators {
        AgentCreate = "agent_create",
        AgentUpdate = "agent_update",
        DeploymentCreate = "deployment_create",
        DeploymentDelete = "deployment_delete",
        DeploymentModify = "deployment_modify",
        DeploymentUpdate = "deployment_update",
        DeploymentSetSite = "deployment_set_site",
        DeploymentSetVisibility = "deployment_set_visibility",
        DeploymentUpdateCreate = "deployment_update_create",
        DeploymentUpdateUpdate = "deployment_update_update",
        DeploymentGroupCreate = "deployment_group_create",
        DeploymentGroupUpdate = "deployment_group_update",
        DeploymentGroupDelete = "deployment_group_delete",
        DeploymentModificationFinish = "deployment_modification_finish",
        DeploymentModificationRollback = "deployment_modification_rollback",
        EventCreate = "event_create",
        EventDelete = "event_delete",
        ExecutionStart = "execution_start",
        ExecutionCancel = "execution_cancel",
        ExecutionDelete = "execution_delete",
        ExecutionStatusUpdate = "execution_status_update",
        ExecutionScheduleCreate = "execution_schedule_create",
        ExecutionGroupCreate = "execution_group_create",
        ExecutionGroupUpdate = "execution_group_update",
        ExecutionGroupCancel = "execution_group_cancel",
        FilterCreate = "filter_create",
        FilterUpdate = "filter_update",
        FilterDelete = "filter_delete",
        FunctionsEvaluate = "functions_evaluate",
        InterDeploymentDependencyCreate = "inter_deployment_dependency_create",
        InterDeploymentDependencyUpdate = "inter_deployment_dependency_update",
        InterDeploymentDependencyDelete = "inter_deployment_dependency_delete",
        NodeUpdate = "node_update",
        NodeDelete = "node_delete",
        NodeInstanceUpdate = "node_instance_update",
        NodeInstanceDelete = "node_instance_delete",
        PluginsUpdateCreate = "plugins_update_create",
        TenantGet = "tenant_get",
        TenantRabbitmqCredentials = "tenant_rabbitmq_credentials",
    }
    Authors {
        BlueprintUpload = "blueprint_upload",
        BlueprintDelete = "blueprint_delete",
        PluginUpload = "plugin_upload",
        PluginDelete = "plugin_delete",
        SecretCreate = "secret_create",
        SecretUpdate = "secret_update",
        SecretDelete = "secret_delete",
        SecretExport = "secret_export",
        SecretImport = "secret_import",
        SecretsProviderCreate = "secrets_provider_create",
        SecretsProviderUpdate = "secrets_provider_update",
        SecretsProviderDelete = "secrets_provider_delete",
        SiteCreate = "site_create",
        SiteUpdate = "site_update",
        SiteDelete = "site_delete",
        ResourceSetVisibility = "resource_set_visibility",
    }
    Managers {
        Administrators = "administrators",
        ExecuteGlobalWorkflow = "execute_global_workflow",
        ManagerConfigPut = "manager_config_put",
    }
    Admins {
        AllTenants = "all_tenants",
        CreateGlobalResource = "create_global_resource",
        ResourceSetGlobal = "resource_set_global",
        SetOwner = "set_owner",
        SetTimestamp = "set_timestamp",
        SetExecutionDetails = "set_execution_details",
        SetExecutionGroupDetails = "set_execution_group_details",
        SetPluginUpdateDetails = "set_plugin_update_details",
        ManageOthersTokens = "manage_others_tokens",
        InjectToken = "inject_token",
        GetPasswordHash = "get_password_hash",
        GettingStarted = "getting_started",
        UserCreate = "user_create",
        UserDelete = "user_delete",
        UserGet = "user_get",
        UserList = "user_list",
        UserUpdate = "user_update",
        UserSetActivated = "user_set_activated",
        UserToken = "user_token",
        UserUnlock = "user_unlock",
        UserGroupCreate = "user_group_create",
        UserGroupUpdate = "user_group_update",
        UserGroupDelete = "user_group_delete",
        UserGroupGet = "user_group_get",
        UserGroupList = "user_group_list",
        UserGroupAddUser = "user_group_add_user",
        UserGroupRemoveUser = "user_group_remove_user",
        TenantCreate = "tenant_create",
        TenantDelete = "tenant_delete",
        TenantListGetData = "tenant_list_get_data",
        TenantAddUser = "tenant_add_user",
        TenantUpdateUser = "tenant_update_user",
        TenantRemoveUser = "tenant_remove_user",
        TenantAddGroup = "tenant_add_group",
        TenantUpdateGroup = "tenant_update_group",
        TenantRemoveGroup = "tenant_remove_group",
        ClusterNodeConfigUpdate = "cluster_node_config_update",
        BrokerManage = "broker_manage",
        BrokerCredentials = "broker_credentials",
        ManagerManage = "manager_manage",
        LicenseUpload = "license_upload",
        LicenseRemove = "license_remove",
        LdapSet = "ldap_set",
        MaintenanceModeSet = "maintenance_mode_set",
        SnapshotCreate = "snapshot_create",
        SnapshotDelete = "snapshot_delete",
        SnapshotGet = "snapshot_get",
        SnapshotList = "snapshot_list",
        SnapshotDownload = "snapshot_download",
        SnapshotUpload = "snapshot_upload",
        SnapshotRestore = "snapshot_restore",
        SnapshotStatusUpdate = "snapshot_status_update",
        LogBundleCreate = "log_bundle_create",
        LogBundleDelete = "log_bundle_delete",
        LogBundleGet = "log_bundle_get",
        LogBundleList = "log_bundle_list",
        LogBundleDownload = "log_bundle_download",
        LogBundleStatusUpdate = "log_bundle_status_update",
        AgentReplaceCerts = "agent_replace_certs",
        SecretsProviderCredentials = "secrets_provider_credentials",
        AuditLogView = "audit_log_view",
        AuditLogInject = "audit_log_inject",
        AuditLogTruncate = "audit_log_truncate",
        CommunityContactCreate = "community_contact_create",
        Monitoring = "monitoring",
    }
}

impl Permission {
    /// Whether a system role has it, in every tenant and outside of all.
    #[must_use]
    pub fn of_system(self, role: SystemRole) -> bool {
        role == SystemRole::Admin || matches!(self.holders(), Holders::Everyone | Holders::Tokens)
    }

    /// Whether a role has it in its tenant.
    #[must_use]
    pub fn of_tenant(self, role: TenantRole) -> bool {
        match self.holders() {
            Holders::Everyone | Holders::Readers => true,
            Holders::Tokens => role != TenantRole::Operations,
            Holders::Operators => role != TenantRole::Viewer,
            Holders::Authors => matches!(role, TenantRole::Manager | TenantRole::User),
            Holders::Managers => role == TenantRole::Manager,
            Holders::Admins => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_look_and_operators_bring_no_blueprints() {
        assert!(Permission::DeploymentList.of_tenant(TenantRole::Viewer));
        assert!(!Permission::ExecutionStart.of_tenant(TenantRole::Viewer));
        assert!(Permission::ExecutionStart.of_tenant(TenantRole::Operations));
        assert!(!Permission::BlueprintUpload.of_tenant(TenantRole::Operations));
        assert!(!Permission::TenantCreate.of_tenant(TenantRole::Manager));
        assert!(!Permission::DeploymentList.of_system(SystemRole::Default));
        assert!(Permission::StatusGet.of_system(SystemRole::Default));
        assert!(Permission::TenantCreate.of_system(SystemRole::Admin));
    }
}
